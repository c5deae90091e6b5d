"""Build one engine, in a process of its own: what TensorRT held is given back when it ends, and a crash takes nothing along.

Reads a :class:`BuildJob` as JSON from stdin and writes JSON lines to stdout: ``{"phase", "done", "total"}`` while it works,
then ``{"result"}`` or ``{"error", "decomposable"}``.  Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sts_export.errors import BackendError, StsExportError
from sts_export.files import replace_file
from sts_export.lowering.tensorrt import lower
from sts_export.tensorrt.plugins import load_library
from sts_export.tensorrt.runtimes import Runtime, graph_version, load, strongly_typed, version_of

# Raised with whatever changes engines and is no part of a BuildJob, such as the flags below.
REVISION = 1
_SAID = 5  # errors worth repeating


@dataclass(frozen=True)
class BuildJob:
    """One engine.

    Args:
        graph: file of the bundle's graph.
        weights_folder: where its external data lie.
        output: engine file to write.
        plugins: library whose plugins stand in for the function bodies; None keeps those.
        decomposable: allow attention to be built from primitive operators.
        profiles: of every profile, input name -> least, best and largest shape.
        capability: GPU to build for, such as ``sm_89``; None: the one that is here, or any.
        timing_cache: file to read and update; None for none.
        optimization_level: 0 (fast build) to 5 (fast engine); None: TensorRT's default.
        workspace: bytes that a kernel may use; None: no limit but the GPU's.
    """

    runtime: Runtime
    graph: str
    weights_folder: str
    output: str
    plugins: str | None
    decomposable: bool
    profiles: list[dict[str, list[list[int]]]]
    capability: str | None = None
    timing_cache: str | None = None
    optimization_level: int | None = None
    workspace: int | None = None


@dataclass(frozen=True)
class BuildResult:
    """aliased_caches: see LoweredGraph."""

    tensorrt: str
    aliased_caches: bool


class NoEngineError(BackendError):
    """The builder found no way to build a parsed network.

    Args:
        decomposable: it has attention layers that were to be fused; built from primitive operators it may work.
    """

    def __init__(self, message: str, *, decomposable: bool) -> None:
        super().__init__(message)
        self.decomposable = decomposable


def build_engine(job: BuildJob, trt: Any, report: Any) -> BuildResult:
    """Parse and build; ``report(phase, done, total)`` is told of TensorRT's phases.

    Raises:
        BackendError: TensorRT refuses the graph or fails to build it; nothing is left at ``output``.
    """
    version = version_of(trt)
    report("reading", 0, 1)
    logger = _logger(trt)
    if job.plugins is not None:
        load_library(trt, logger, Path(job.plugins))
    lowered = lower(Path(job.graph).read_bytes(), graph_version(job.runtime, version), plugins=job.plugins is not None)
    builder = trt.Builder(logger)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    # The name stands for the folder in which the parser looks for the weights.
    if not parser.parse(lowered.graph, str(Path(job.weights_folder) / Path(job.graph).name)):
        reasons = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BackendError(f"{job.runtime} {version} does not take {Path(job.graph).name}: {_said(reasons or logger.errors)}")
    attentions = attention_layers(trt, network)
    if job.decomposable:
        for layer in attentions:
            layer.attention.decomposable = True
    config = _config(job, trt, builder, report)
    cache = _attach_timing_cache(job, config)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise NoEngineError(
            f"{job.runtime} {version} does not build {Path(job.graph).name}: {_said(logger.errors)}",
            decomposable=bool(attentions) and not job.decomposable,
        )
    replace_file(Path(job.output), engine)
    if cache is not None and job.timing_cache is not None:
        with contextlib.suppress(OSError):  # it only saves time
            replace_file(Path(job.timing_cache), config.get_timing_cache().serialize())
    return BuildResult(version, lowered.aliased_caches)


def attention_layers(trt: Any, network: Any) -> list[Any]:
    """Every attention of a network, with its ``attention`` attribute.

    TensorRT before 10.14 has no such layers: there the graph comes lowered to primitive operators.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [layer for layer in layers if kind is not None and layer.type == kind]
    for layer in found:
        layer.__class__ = trt.IAttentionInputLayer  # get_layer returns the base class
    return found


def _config(job: BuildJob, trt: Any, builder: Any, report: Any) -> Any:
    config = builder.create_builder_config()
    if job.optimization_level is not None:
        config.builder_optimization_level = job.optimization_level
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, job.capability.upper().replace("_", "")), 0)
    for sizes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in sizes.items():
            profile.set_shape(name, *(tuple(shape) for shape in shapes))
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(
                f"{job.runtime} refuses the sizes {sizes} of {Path(job.graph).name}; export with smaller capacities"
            )
    config.progress_monitor = _monitor(trt, report)
    # TensorRT for RTX captures only engines that allocate nothing themselves in a CUDA graph.
    flag = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if flag is not None:
        config.set_flag(flag)
    # On by default, and too coarse for stage 1's distances: other tokens would be kept (docs/method.md, "Facts to use").
    config.clear_flag(trt.BuilderFlag.TF32)
    return config


def _attach_timing_cache(job: BuildJob, config: Any) -> Any:
    if job.timing_cache is None:
        return None
    try:
        stored = Path(job.timing_cache).read_bytes()
    except OSError:
        stored = b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # Of another GPU or version: begin a new one.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for the message; the rest is of no use to a user."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _monitor(trt: Any, report: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Top-level phases only; TensorRT calls it from several threads."""

        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.totals[phase_name] = num_steps
                report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.totals:
                report(phase_name, step + 1, self.totals[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            if (total := self.totals.pop(phase_name, None)) is not None:
                report(phase_name, total, total)

    return Monitor()


def _said(reasons: list[str]) -> str:
    text = "; ".join(" ".join(reason.split()) for reason in reasons[:_SAID])
    return text[:600] or "it gives no reason"


def main() -> int:
    """Exit code 0 with a result line, 1 with an error line."""
    # Libraries print to file descriptor 1; keep it for the protocol.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = BuildJob(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name = Path(job.graph).name
    try:
        result = build_engine(
            job, load(job.runtime), lambda phase, done, total: _say(channel, phase=phase, done=done, total=total)
        )
    except StsExportError as error:
        _say(channel, error=str(error), decomposable=isinstance(error, NoEngineError) and error.decomposable)
        return 1
    except MemoryError:
        _say(channel, error=f"no memory to build {name}; build on a machine with more", decomposable=False)
        return 1
    except OSError as error:
        reason = error.strerror or str(error)
        _say(channel, error=f"cannot write the engine of {name}: {reason}; check disk and permissions", decomposable=False)
        return 1
    _say(channel, result=asdict(result))
    return 0


def _end_with_parent() -> None:
    """The parent keeps our stdin open as long as it lives, however it ends."""
    while os.read(0, 1):  # not sys.stdin, whose lock a waiting thread would keep at exit
        pass
    os._exit(3)


def _say(channel: IO[str], **line: Any) -> None:
    channel.write(json.dumps(line) + "\n")
    channel.flush()
