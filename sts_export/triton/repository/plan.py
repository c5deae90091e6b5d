"""Options and a bundle -> what is written, or a refusal before anything is."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from sts_export.backends.choice import CPU, CUDA
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.generation.pipeline import BATCH_SIZE
from sts_export.paths import library_path, user_path
from sts_export.requests.request import check_count
from sts_export.tensorrt.runtimes import RUNTIMES, Runtime
from sts_export.triton.config import Instances
from sts_export.triton.repository.engines import built_engines, check_engines
from sts_export.triton.repository.names import ENCODER, check_model_name
from sts_export.triton.repository.options import RepositoryOptions
from sts_export.triton.repository.wheels import PACKAGE, check_kernels, check_wheel
from sts_export.triton.settings import ModelSettings

MARK = ".sts-export-triton.json"  # by which a repository of ours is known


@dataclass(frozen=True)
class Plan:
    """What is written.

    Args:
        runtime: whose engines are used; None: no engines.
        build_at_start: they are built by the container.
        wheel, kernels: checked.
    """

    bundle: Bundle
    output: Path
    model: str
    settings: ModelSettings
    instances: Instances
    runtime: Runtime | None
    build_at_start: bool
    link: bool
    with_encoder: bool
    wheel: Path | None
    kernels: Path | None

    @property
    def gpus(self) -> tuple[int, ...]:
        return self.instances.gpus

    @property
    def models(self) -> tuple[str, ...]:
        """Folders of the repository."""
        return (self.model, f"{self.model}{ENCODER}") if self.with_encoder else (self.model,)

    @property
    def processes(self) -> int:
        """That hold the weights."""
        return self.instances.count * max(1, len(self.gpus)) * len(self.models)

    @property
    def compiles_kernels(self) -> bool:
        return self.kernels is not None and self.kernels.is_dir()


def make_plan(options: RepositoryOptions) -> Plan:
    """Everything that can be wrong is found here.

    Raises:
        RequestError: options contradict each other or the bundle, or a value is wrong.
        BundleError: the bundle cannot be used, or its engines are missing.
        OutputError: the repository cannot be written there.
    """
    instances = Instances(options.instances, options.gpus)
    _check_combination(options)
    bundle = open_bundle(options.bundle)
    model = bundle.folder.resolve().name if options.model_name is None else options.model_name
    check_model_name(model)
    output = user_path(options.output)
    _check_places(bundle, output)
    _check_bundle(bundle, options)
    backend = options.backend or (_best(bundle, options) if options.gpus else CPU)
    runtime = next((name for name in RUNTIMES if name == backend), None)
    if options.build_at_start and runtime is None:
        raise RequestError(f"{backend} needs no engines: leave --build-at-start out, or take --backend tensorrt")
    if options.kernels is not None and options.kernels.is_dir() and runtime != "tensorrt":
        raise RequestError(
            f"plugins that are compiled from a checkout are for TensorRT, not for {backend}: give a wheel of "
            "sts-export-kernels, or leave --kernels out"
        )
    if backend == CPU and bundle.manifest.dtype == "bfloat16":
        raise RequestError(f"{bundle.folder} is in bfloat16, which {CPU} cannot run; give --gpus, or another --dtype at export")
    folder = "" if options.allow_image_folder is None else str(library_path(options.allow_image_folder).resolve())
    given = {name: getattr(options, name) for name in ("max_queue_size", "feature_cache", "max_picture")}
    settings = replace(
        ModelSettings(),
        backend=backend,
        threads=_threads(options),
        slots=_slots(bundle, options, runtime),
        longest_wait=options.longest_wait,
        reuse_prefixes=options.reuse_prefixes,
        allow_image_hosts=options.allow_image_hosts,
        allow_image_folder=folder,
        **{name: value for name, value in given.items() if value is not None},
    )
    _ = settings.picture_rules  # hosts, and whether the folder is one
    return Plan(
        bundle=bundle,
        output=output,
        model=model,
        settings=settings,
        instances=instances,
        runtime=runtime,
        build_at_start=options.build_at_start,
        link=options.link,
        with_encoder=options.with_encoder,
        wheel=None if options.wheel is None else check_wheel(options.wheel, PACKAGE, f"{PACKAGE}/triton/__init__.py"),
        kernels=None if options.kernels is None else check_kernels(options.kernels),
    )


def check_output(output: Path, *, force: bool) -> None:
    """Whether the repository may be written there.

    Raises:
        OutputError: something is there that must not be replaced.
    """
    if not os.path.lexists(output):
        return
    if not force:
        raise OutputError(f"{output} exists; choose another --output or replace it with --force")
    if not (output / MARK).is_file():
        raise OutputError(
            f"{output} exists and is no model repository of sts-export, so --force does not replace it; remove it yourself"
        )


def _check_combination(options: RepositoryOptions) -> None:
    gpus = ",".join(map(str, options.gpus))
    if options.gpus and options.threads is not None:
        raise RequestError("threads are for the CPU: leave --threads or --gpus out")
    if options.gpus and options.backend == CPU:
        raise RequestError(f"{CPU} runs on the CPU: leave --gpus {gpus} out, or take another --backend")
    if not options.gpus and options.backend not in (None, CPU):
        raise RequestError(f"{options.backend} runs on GPUs; say on which, such as --gpus 0")
    if options.link:
        container = (("--wheel", options.wheel), ("--kernels", options.kernels), ("--build-at-start", options.build_at_start))
        for name, value in container:
            if value:
                raise RequestError(f"{name} is for a container, which cannot follow a link: leave --link or {name} out")


def _check_places(bundle: Bundle, output: Path) -> None:
    inside, outside = Path(os.path.realpath(bundle.folder)), Path(os.path.realpath(output))
    if outside.is_relative_to(inside):
        raise OutputError(f"{output} lies inside the bundle; choose another --output")
    if inside.is_relative_to(outside):
        raise OutputError(f"{output} holds the bundle itself; choose another --output")


def _check_bundle(bundle: Bundle, options: RepositoryOptions) -> None:
    manifest = bundle.manifest
    if manifest.quantization is not None and options.gpus:
        raise RequestError(
            f"{bundle.folder} is quantized ({manifest.quantization}), which is for ONNX Runtime on the CPU: leave --gpus out, "
            "or export without --quantize"
        )
    if manifest.weights.mode == "link" and not options.link:
        raise RequestError(
            f"the weights of {bundle.folder} are links to {manifest.weights.folder}, which a container would not see; export "
            "with --weights copy, or give --link for a server on this machine"
        )


def _best(bundle: Bundle, options: RepositoryOptions) -> str:
    """For GPUs: engines if there are some, or will be."""
    for runtime in RUNTIMES:
        if built_engines(bundle, runtime):
            return runtime
    return "tensorrt" if options.build_at_start else CUDA


def _threads(options: RepositoryOptions) -> int:
    """0 is the engine's choice in config.pbtxt, and no number of threads on the command line."""
    if options.threads is None:
        return 0
    check_count("threads", options.threads)
    return options.threads


def _slots(bundle: Bundle, options: RepositoryOptions, runtime: Runtime | None) -> int:
    """As many as are asked for; engines that are there take no more than they were built for."""
    if options.slots is not None:
        check_count("slots", options.slots)
    if runtime is None or options.build_at_start:
        return BATCH_SIZE if options.slots is None else options.slots
    most = min(record.max_batch for record in check_engines(bundle, runtime))
    if options.slots is not None and options.slots > most:
        raise RequestError(
            f"the engines answer up to {most} requests together, not {options.slots}; build them again with sts-export build "
            f"{bundle.folder} --runtime {runtime} --max-batch {options.slots}, or give --slots {most}"
        )
    return min(BATCH_SIZE, most) if options.slots is None else options.slots
