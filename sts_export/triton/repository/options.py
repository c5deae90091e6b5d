"""What is asked for, as it stands on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RepositoryOptions:
    """Of one repository.

    Args:
        bundle: folder.
        output: where the repository is written.
        model_name: None: the bundle's folder name.
        slots: None: as usual, or as many as the engines take.
        longest_wait: seconds; 0: no limit.
        gpus: device numbers; none: the CPU.
        instances: on the CPU, or on each GPU.
        backend: None: the best for the GPUs that the bundle offers, or ONNX Runtime on the CPU.
        threads: CPU threads of each instance; None: the engine's choice.
        feature_cache: bytes.
        max_picture: bytes.
        link: a symbolic link to the bundle instead of a copy, for a server on this machine.
        with_encoder: a second model that returns features of pictures.
        build_at_start: TensorRT's engines are built where the container runs.
        wheel: of sts-export, for the container; None: it is installed from the package index.
        kernels: a checkout of sts-export, from which the container compiles TensorRT's plugins, or a wheel of
            sts-export-kernels.
        force: replace a repository that was written by this command.
    """

    bundle: str | Path
    output: str | Path
    model_name: str | None = None
    slots: int | None = None
    max_queue_size: int | None = None
    longest_wait: float = 0.0
    gpus: tuple[int, ...] = ()
    instances: int = 1
    backend: str | None = None
    threads: int | None = None
    feature_cache: int | None = None
    reuse_prefixes: bool = True
    allow_image_hosts: tuple[str, ...] = ()
    allow_image_folder: Path | None = None
    max_picture: int | None = None
    link: bool = False
    with_encoder: bool = False
    build_at_start: bool = False
    wheel: Path | None = None
    kernels: Path | None = None
    force: bool = False
