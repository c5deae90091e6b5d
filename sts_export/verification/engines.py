"""`sts-export verify --backend tensorrt`: engines against ONNX Runtime, graph by graph, with Polygraphy.

A picture and a prompt go through all four graphs, a prefill and a step of decode, on ONNX Runtime; each engine gets the very
inputs that its graph got there.  It all happens in a process of its own: Polygraphy reads from its environment which TensorRT
it is for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import BackendError, RequestError, StsExportError
from sts_export.tensorrt.device import current_gpu
from sts_export.tensorrt.portable.commands import OLDEST_POLYGRAPHY, POLYGRAPHY
from sts_export.tensorrt.portable.polygraphy_script import OTHER_ROWS, TOLERANCE, Agreement, agreements
from sts_export.tensorrt.portable.sample_inputs import Arrays, Case, sample_request, walk
from sts_export.tensorrt.process import python_command
from sts_export.tensorrt.record import EngineSet, open_engines
from sts_export.tensorrt.runtimes import Runtime, load

# Makes Polygraphy's runner for one case.
OpenRunner = Callable[[Case], Any]


@dataclass(frozen=True)
class CaseReport:
    """One graph in one phase: its outputs on the engine against those on ONNX Runtime."""

    name: str
    outputs: dict[str, Agreement]

    @property
    def passed(self) -> bool:
        return all(self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "outputs": {key: asdict(item) for key, item in self.outputs.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CaseReport:
        return cls(data["name"], {key: Agreement(**item) for key, item in data["outputs"].items()})


@dataclass(frozen=True)
class CompareReport:
    """All cases and the verdict."""

    runtime: Runtime
    tensorrt: str
    target: str
    precision: str
    cases: tuple[CaseReport, ...]

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "runtime": self.runtime,
            "tensorrt": self.tensorrt,
            "target": self.target,
            "precision": self.precision,
            "tolerance": TOLERANCE[self.precision],
            "cases": [case.to_json() for case in self.cases],
        }


def compare_engines(
    bundle: str | Path, runtime: Runtime, *, image: str | None = None, prompt: str | None = None
) -> CompareReport:
    """Compare the engines that fit this machine.

    Args:
        image: picture file; None: a generated one.
        prompt: None: one of ours that fits.

    Raises:
        RequestError: Polygraphy is missing, or the bundle is one that ONNX Runtime on CPU cannot run; or the image or prompt is
            wrong.
        BundleError: there are no engines, or they do not fit.
        BackendError: no GPU, or an engine fails.
    """
    _require_polygraphy(runtime)
    opened = open_bundle(bundle)
    if opened.manifest.dtype == "bfloat16":
        raise RequestError(
            "ONNX Runtime on CPU, which the engines are compared with, cannot run bfloat16; "
            "export and build with --dtype float16 or float32 to compare"
        )
    engines = open_engines(opened, runtime)
    if current_gpu() is None:
        raise BackendError(
            f"verify --backend {runtime} runs the engines, and no CUDA GPU is found here (driver, cuda-python?); "
            "run it on the machine they are for"
        )
    job = {"bundle": str(bundle), "runtime": runtime, "image": image, "prompt": prompt}
    record = engines.record
    return CompareReport(runtime, record.tensorrt, record.target, opened.manifest.dtype, _run_worker(job, runtime))


def _require_polygraphy(runtime: Runtime) -> None:
    """Older ones leave cache outputs unbound where an engine writes its caches in place."""
    try:
        found = version("polygraphy")
    except PackageNotFoundError:
        raise RequestError(
            f"verify --backend {runtime} needs Polygraphy: pip install 'sts-export[{runtime}]' or '{POLYGRAPHY}'"
        ) from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_POLYGRAPHY:
        raise RequestError(
            f"Polygraphy {found} cannot run engines that write their caches in place: pip install --upgrade '{POLYGRAPHY}'"
        )


def _run_worker(job: dict[str, Any], runtime: Runtime) -> tuple[CaseReport, ...]:
    """The comparison in a process of its own, which dies with us."""
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if runtime == "tensorrt-rtx" else "0"}
    with tempfile.TemporaryFile() as noise:
        done = subprocess.run(
            python_command("sts_export.verification.engines"),
            input=json.dumps(job),
            stdout=subprocess.PIPE,
            stderr=noise,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        noise.seek(0)
        last = " ".join(noise.read().decode(errors="replace").split())[-300:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if lines and "error" in lines[-1]:
        kind = RequestError if lines[-1]["exit_code"] == RequestError.exit_code else BackendError
        raise kind(lines[-1]["error"])
    if done.returncode != 0 or not lines:
        raise BackendError(
            f"the comparison ended without a result (exit code {done.returncode}{f': {last}' if last else ''}); "
            "if memory ran out, compare where there is more"
        )
    return tuple(CaseReport.from_json(item) for item in lines[-1]["cases"])


def compare_cases(
    bundle: Bundle, open_engine: OpenRunner, *, image: Any = None, prompt: str | None = None
) -> tuple[CaseReport, ...]:
    """Every case on ONNX Runtime and on the runners that ``open_engine`` makes.

    Raises:
        BackendError: a runner fails.
    """
    request = sample_request(bundle, image, prompt)
    (keeps,) = request.keeps
    after = {f"{part.name}_prefill": keep for part, keep in zip(bundle.manifest.pruning.parts, keeps[1:], strict=False)}
    reports = []

    def run(case: Case, feeds: Arrays) -> Arrays:
        reference, actual = _run_both(bundle, case, open_engine, feeds)
        visual_keep = after.get(case.name, 1)
        found = agreements(actual, reference, bundle.manifest.dtype, kept=keeps[0], visual_keep=visual_keep)
        reports.append(CaseReport(case.name, found))
        return reference

    walk(bundle, request, run)
    return tuple(reports)


def _run_both(bundle: Bundle, case: Case, open_engine: OpenRunner, feeds: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs of ONNX Runtime and of the engine, one after the other: together they need not fit into memory."""
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    runners = [OnnxrtRunner(partial(_session, bundle, case.graph), name="onnxruntime"), open_engine(case)]
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run(runners, data_loader=[dict(feeds)])
    except PolygraphyException as error:
        said = " ".join(str(error).split())[:300]
        raise BackendError(f"{case.name} does not run: {said}; build the engines again") from None
    reference, actual = (dict(iterations[0].items()) for _, iterations in results)
    return reference, actual


def _session(bundle: Bundle, graph: str) -> Any:
    """The graph as it is, without the operators that our own backend puts in."""
    from sts_export.backends.onnxruntime.sessions import Sessions

    return Sessions("cpu").open(bundle.graph_file(graph).read_bytes(), weights=bundle.weights_folder)


def engine_runner(engines: EngineSet, case: Case) -> Any:
    """Polygraphy's runner of one engine under the profile of a case; it binds cache outputs to their inputs itself."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    file = str(engines.file(case.graph))
    return TrtRunner(EngineFromBytes(BytesFromPath(file)), name=engines.record.runtime, optimization_profile=case.profile)


def _work(job: dict[str, Any]) -> dict[str, Any]:
    bundle = open_bundle(job["bundle"])
    engines = open_engines(bundle, job["runtime"])
    if engines.plugin_library is not None:
        from polygraphy.backend.trt import get_trt_logger

        from sts_export.tensorrt.plugins import load_library

        load_library(load(job["runtime"]), get_trt_logger(), engines.plugin_library)
    reports = compare_cases(bundle, partial(engine_runner, engines), image=job["image"], prompt=job["prompt"])
    return {"cases": [report.to_json() for report in reports]}


def format_comparison(report: CompareReport) -> str:
    """A table for people."""
    lines = [f"{'graph':<20}{'indices':<18}{'max abs':<11}{'relative':<11}{'largest difference in'}"]
    for case in report.cases:
        worst = max(case.outputs.items(), key=lambda entry: (not entry[1].passed, entry[1].kind == "float", entry[1].max_rel))
        name, found = worst
        verdict = "" if case.passed else "  FAILED"
        lines.append(f"{case.name:<20}{_indices(case):<18}{found.max_abs:<11.2e}{found.max_rel:<11.2e}{name}{verdict}")
    precision = report.precision
    rows = f", up to {OTHER_ROWS[precision]:.0%} other rows in stage 2" if OTHER_ROWS[precision] else ""
    lines.append(
        f"{'passed' if report.passed else 'FAILED'}: {report.runtime} {report.tensorrt} against ONNX Runtime in {precision}, "
        f"tolerance {TOLERANCE[precision]:g}{rows}"
    )
    return "\n".join(lines)


def _indices(case: CaseReport) -> str:
    numbers = [item for item in case.outputs.values() if item.kind == "index"]
    if not numbers:
        return "-"
    others = max(item.other_rows for item in numbers)
    if others and all(numbers):
        return f"{others:.0%} other rows"
    return "equal" if all(numbers) else "DIFFERENT"


def main() -> int:
    """Reads a job from stdin; writes one JSON line to stdout.  Exit code 0 with reports, 1 with an error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")  # libraries print to file descriptor 1
    os.dup2(2, 1)
    code = 0
    try:
        said = _work(json.load(sys.stdin))
    except StsExportError as error:
        said, code = {"error": str(error), "exit_code": error.exit_code}, 1
    channel.write(json.dumps(said) + "\n")
    channel.flush()
    return code
