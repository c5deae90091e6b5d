"""Opens a bundle the way a comparison wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sts_export.generation.pipeline import Pipeline


NO_OPERATORS = ""


@dataclass(frozen=True)
class BundleTarget:
    """A bundle and how it is run.

    Args:
        bundle: its folder.
        backend: of sts-export.
        operators: library of operators for ONNX Runtime on CUDA; None takes what sts-export finds by itself, NO_OPERATORS none.
        sdpa_kernel: which attention kernels ONNX Runtime's CUDA provider may take, as its option of that name; None leaves it
            to sts-export.
    """

    bundle: str
    backend: str
    operators: str | None = None
    sdpa_kernel: str | None = None


def open_pipeline(target: BundleTarget, threads: int | None = None) -> Pipeline:
    """The pipeline of a bundle.

    Args:
        threads: of the CPU.

    Raises:
        StsExportError: the bundle or the backend cannot be used.
    """
    from sts_export.generation.pipeline import Pipeline

    if target.sdpa_kernel is None and target.operators != NO_OPERATORS:
        return Pipeline(target.bundle, backend=target.backend, threads=threads, plugins=target.operators)
    return _on_cuda(target)


def _on_cuda(target: BundleTarget) -> Pipeline:
    """On ONNX Runtime CUDA, with what commands have no option for: attention kernels, no library though there is one."""
    from sts_export.backends.choice import CUDA, OpenedBackend
    from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend
    from sts_export.backends.onnxruntime.operators import find_operators
    from sts_export.backends.onnxruntime.sessions import SDPA_KERNEL
    from sts_export.bundle.manifest import open_bundle
    from sts_export.generation.pipeline import Pipeline

    bundle = open_bundle(target.bundle)
    operators = None if target.operators == NO_OPERATORS else find_operators(bundle, target.operators)
    backend = OnnxRuntimeBackend(bundle, device="cuda", operators=operators, sdpa_kernel=target.sdpa_kernel or SDPA_KERNEL)
    opened = OpenedBackend(CUDA, backend, operators=None if operators is None else operators.name)
    return Pipeline(bundle.folder, backend=opened)
