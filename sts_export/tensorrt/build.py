"""Engines of a bundle: `sts-export build`."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.bundle.records import record_file
from sts_export.errors import BackendError, OutputError, RequestError, StsExportError
from sts_export.files import PARTS, replace_file
from sts_export.lowering.tensorrt import FUSED, lower
from sts_export.tensorrt.build_options import check_options
from sts_export.tensorrt.device import Gpu, current_gpu
from sts_export.tensorrt.memory import check_memory, estimate
from sts_export.tensorrt.plugins import find_library, with_stages
from sts_export.tensorrt.portable.graphs import OLDEST, GraphsRequest, write_graphs
from sts_export.tensorrt.process import BuildProgress, run_worker
from sts_export.tensorrt.profiles import is_dynamic, profiles, shapes
from sts_export.tensorrt.record import (
    PORTABLE,
    BuildRecord,
    EngineRecord,
    PluginLibrary,
    bundle_digest,
    engines_folder,
    read_record,
    this_platform,
    write_record,
)
from sts_export.tensorrt.runtimes import RUNTIMES, Runtime, graph_version, installed, load, parse_version, version_of
from sts_export.tensorrt.worker import REVISION, BuildJob, NoEngineError

DEFAULT_MAX_BATCH = 1  # each request more costs caches and activations
# What TensorRT for RTX 1.7 builds for, but sm_75: Turing lacks the float32 products and bfloat16 that the graphs need.
_CAPABILITIES = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
_TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Args:
        bundle: folder.
        runtime: None takes the one that is installed, TensorRT before TensorRT for RTX.
        target: GPU to build for ahead of time (TensorRT for RTX only), such as ``sm_89``; None: the GPU that is here, or for
            TensorRT for RTX any that it supports.
        max_batch: requests that may run together; None: as many as the engines there are for, one if there are none.
        plugins: plugin library; None looks for it in the bundle and in the repository.
        use_plugins: False builds from the function bodies even if there is a library.
        optimization_level: 0 to 5; None: TensorRT's default.
        workspace_mb: memory that one kernel may use; None: no limit but the GPU's.
        ignore_memory: build even if the estimate says that it will not fit.
        force: build again what is up to date.
    """

    bundle: str | Path
    runtime: str | None = None
    target: str | None = None
    max_batch: int | None = None
    plugins: str | None = None
    use_plugins: bool = True
    optimization_level: int | None = None
    workspace_mb: int | None = None
    ignore_memory: bool = False
    force: bool = False


@dataclass(frozen=True)
class BuildReport:
    """folder: of the engines; reused: graphs whose engines were up to date; survivors: most rows that stage 2 may leave; notes:
    what did not work, but does not matter."""

    folder: Path
    record: BuildRecord
    reused: tuple[str, ...]
    survivors: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self.record.to_json(), "folder": str(self.folder), "reused": list(self.reused), "notes": list(self.notes)}


def build(request: BuildRequest, progress: BuildProgress | None = None) -> BuildReport:
    """Build the engines, each in its own process; finished ones stay if a later one fails or the build is interrupted.

    Raises:
        RequestError: the request is wrong, or the bundle is one that TensorRT cannot take.
        BackendError: no GPU where one is needed, not enough memory, or TensorRT fails.
    """
    bundle = open_bundle(request.bundle)
    runtime = _runtime(request)
    _check(request, bundle, runtime)
    version = version_of(load(runtime))
    if graph_version(runtime, version) < OLDEST:
        raise BackendError(f"TensorRT {version} is too old; install {'.'.join(map(str, OLDEST))} or later")
    gpu = current_gpu()
    target = _target(request, runtime, gpu)
    folder = engines_folder(bundle, runtime, target)
    before = read_record(folder)
    max_batch = request.max_batch or (DEFAULT_MAX_BATCH if before is None else before.max_batch)
    if not request.ignore_memory:
        fused = graph_version(runtime, version) >= FUSED
        check_memory(estimate(bundle, max_batch, fused=fused), gpu, max_batch=max_batch)
    with_plugins = runtime == "tensorrt" and request.use_plugins
    library = find_library(bundle, request.plugins, parse_version(version)) if with_plugins else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What is up to date may be so in a folder that cannot be written.
        with _exclusively(folder) if os.access(folder, os.W_OK) else nullcontext():
            record = BuildRecord(
                runtime=runtime,
                tensorrt=version,
                target=target,
                gpu=gpu.name if gpu is not None and runtime == "tensorrt" else None,
                platform=this_platform(),
                bundle=bundle_digest(bundle),
                max_batch=max_batch,
                plugins=None if library is None else _copy_plugins(library, folder),
                graphs={},
            )
            return _build_all(request, bundle, record, folder, progress)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}; check disk and permissions") from None
    finally:
        _drop_if_empty(folder)


def _drop_if_empty(folder: Path) -> None:
    """A build that failed before its first engine leaves nothing."""
    with suppress(OSError):
        if {file.name for file in folder.iterdir()} - {".lock"}:
            return
        (folder / ".lock").unlink(missing_ok=True)
        for empty in (folder, folder.parent, folder.parent.parent):
            empty.rmdir()


def _build_all(
    request: BuildRequest, bundle: Bundle, record: BuildRecord, folder: Path, progress: BuildProgress | None
) -> BuildReport:
    """What is up to date is on record from the beginning, so that an interrupted build loses nothing."""
    before = read_record(folder)
    if before is None:
        before = record
    graphs = tuple(bundle.manifest.graphs)
    jobs = {name: _job(request, bundle, name, record, folder) for name in graphs}
    keys = {name: engine_key(bundle, job, record) for name, job in jobs.items()}
    known = {} if request.force else before.graphs
    done = {name: known[name] for name in graphs if name in known and _up_to_date(known[name], keys[name], folder)}
    reused = tuple(done)
    if replace(record, graphs=done) != before:
        write_record(folder, replace(record, graphs=done))
    for name, job in jobs.items():
        if name not in reused:
            done[name] = _build_one(name, job, keys[name], progress)
            write_record(folder, replace(record, graphs=done))
        elif progress:
            progress(name, "up to date", 1, 1)
    record = replace(record, graphs={name: done[name] for name in graphs})
    if reused != graphs:
        write_record(folder, record)
    notes = tuple(_leave_commands(request, bundle, record))
    return BuildReport(folder, record, reused, bundle.manifest.capacities.rows[1], notes)


def _leave_commands(request: BuildRequest, bundle: Bundle, record: BuildRecord) -> Iterator[str]:
    """The same engines by NVIDIA's own tools; not for linked weights, which those do not find."""
    if bundle.manifest.weights.mode == "link":
        return
    try:
        write_graphs(
            GraphsRequest(
                bundle=bundle.folder,
                runtime=record.runtime,
                version=record.tensorrt if record.runtime == "tensorrt" else None,
                use_plugins=record.plugins is not None,
                max_batch=record.max_batch,
                optimization_level=request.optimization_level,
                workspace_mb=request.workspace_mb,
            )
        )
    except (StsExportError, OSError) as error:  # the engines are built, whatever becomes of the commands
        yield f"the commands of trtexec and polygraphy were not written: {error}"


@contextmanager
def _exclusively(folder: Path) -> Iterator[None]:
    """One build of a folder at a time; the lock ends with the process that holds it."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RequestError(f"another build is at work in {folder}; wait for it or stop it") from None
    try:
        for part in folder.glob(PARTS):  # of a build that was killed
            part.unlink()
        yield
    finally:
        lock.release()


def _runtime(request: BuildRequest) -> Runtime:
    if request.runtime is None:
        found = installed()
        if not found:
            raise BackendError(
                "neither tensorrt nor tensorrt_rtx is installed: "
                "pip install 'sts-export[tensorrt]' or 'sts-export[tensorrt-rtx]'"
            )
        return found[0]
    for runtime in RUNTIMES:
        if runtime == request.runtime:
            return runtime
    raise RequestError(f"unknown runtime {request.runtime!r}: choose one of {', '.join(RUNTIMES)}")


def _check(request: BuildRequest, bundle: Bundle, runtime: Runtime) -> None:
    check_options(
        bundle,
        max_batch=1 if request.max_batch is None else request.max_batch,
        optimization_level=request.optimization_level,
        workspace_mb=request.workspace_mb,
        plugins=request.plugins,
        use_plugins=request.use_plugins,
    )
    if runtime == "tensorrt-rtx" and request.plugins is not None:
        raise RequestError(
            "TensorRT for RTX takes no plugins (its 1.7 aborts); leave --plugins out or choose --runtime tensorrt"
        )


def _target(request: BuildRequest, runtime: Runtime, gpu: Gpu | None) -> str:
    if runtime == "tensorrt":
        if request.target is not None:
            raise RequestError("TensorRT builds for the GPU it runs on; --target is for --runtime tensorrt-rtx")
        if gpu is None:
            raise BackendError(
                "TensorRT builds on the GPU that its engines run on, and no CUDA GPU is found here (driver, cuda-python?); "
                "build there, or take --runtime tensorrt-rtx, which builds without one"
            )
        return gpu.target
    if request.target is None:
        return PORTABLE
    if request.target not in _CAPABILITIES:
        raise RequestError(f"TensorRT for RTX does not build for {request.target!r}: choose one of {', '.join(_CAPABILITIES)}")
    return request.target


def _copy_plugins(library: Path, folder: Path) -> PluginLibrary:
    """A copy beside the engines, so that the folder is all that a server needs."""
    copy, digest = folder / library.name, record_file(library).sha256
    assert digest is not None
    if not copy.is_file() or record_file(copy).sha256 != digest:
        replace_file(copy, library.read_bytes())
    return PluginLibrary(copy.name, digest)


def _job(request: BuildRequest, bundle: Bundle, name: str, record: BuildRecord, folder: Path) -> BuildJob:
    manifest = bundle.manifest
    contract = manifest.graphs[name]
    sizes = [
        {spec.name: [list(shape) for shape in shapes(spec, profile)] for spec in contract.inputs if is_dynamic(spec)}
        for profile in profiles(manifest, name, record.max_batch)
    ]
    return BuildJob(
        runtime=record.runtime,
        graph=str(bundle.graph_file(name).resolve()),
        weights_folder=str(bundle.weights_folder.resolve()),
        output=str(folder / f"{name}.engine"),
        plugins=str(folder / record.plugins.file) if record.plugins is not None and name in with_stages(manifest) else None,
        decomposable=manifest.dtype == "float32",
        profiles=sizes,
        capability=request.target,
        timing_cache=str(folder.parent / _TIMING_CACHE),
        optimization_level=request.optimization_level,
        workspace=None if request.workspace_mb is None else request.workspace_mb << 20,
    )


def engine_key(bundle: Bundle, job: BuildJob, record: BuildRecord) -> str:
    """Digest of all that an engine depends on: the lowered graph, weights, sizes, options, plugins, TensorRT, platform, GPU."""
    version = graph_version(record.runtime, record.tensorrt)
    lowered = lower(Path(job.graph).read_bytes(), version, plugins=job.plugins is not None)
    parts = {
        "graph": hashlib.sha256(lowered.graph).hexdigest(),
        "weights": [weights.sha256 or weights.fingerprint for weights in bundle.manifest.weights.files],
        "profiles": job.profiles,
        "options": [job.decomposable, job.capability, job.optimization_level, job.workspace],
        "plugins": record.plugins.sha256 if record.plugins is not None and job.plugins is not None else None,
        "revision": REVISION,
        "for": [record.runtime, record.tensorrt, record.target, record.gpu, record.platform],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _up_to_date(known: EngineRecord, key: str, folder: Path) -> bool:
    file = folder / known.file
    return known.key == key and file.is_file() and file.stat().st_size == known.size


def _build_one(name: str, job: BuildJob, key: str, progress: BuildProgress | None) -> EngineRecord:
    """In 16 bits attention wants a fused kernel; where there is none for a head size, it is built from primitive operators."""
    started = time.perf_counter()
    try:
        aliased = run_worker(name, job, progress)
    except NoEngineError as error:
        if not error.decomposable:
            raise
        job = replace(job, decomposable=True)
        aliased = run_worker(name, job, progress)
    seconds = round(time.perf_counter() - started, 2)
    written = record_file(Path(job.output))
    assert written.sha256 is not None
    return EngineRecord(
        file=written.file,
        size=written.size,
        sha256=written.sha256,
        key=key,
        seconds=seconds,
        aliased_caches=aliased,
        plugins=job.plugins is not None,
        decomposed_attention=job.decomposable,
    )
