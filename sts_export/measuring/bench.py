"""Time engines against each other: each in its own process, taking turns.

Separate processes keep one engine's memory and threads out of another's figures; taking turns keeps a machine's drift out
of their ratio.
"""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sts_export.errors import RequestError, StsExportError

METRICS = ("first_token_ms", "decode_ms_per_token", "selection_ms")

# One measured run: metric -> value.  An attribute ``backend``, if it has one, names what runs it.
Runner = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class BenchTask:
    """What is run: ``max_new_tokens`` greedy tokens, end tokens ignored.

    ``image`` None takes a generated picture, ``backend`` None the one that a pipeline chooses.
    """

    image: str | None
    prompt: str
    max_new_tokens: int
    repeats: int
    threads: int | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.max_new_tokens < 2:
            raise RequestError("a benchmark needs at least 1 repeat and 2 new tokens")


@dataclass(frozen=True)
class Contender:
    """Something to time: ``opener`` is ``"module:function"``, called in the worker as function(target, task) -> Runner."""

    name: str
    opener: str
    target: str


@dataclass(frozen=True)
class BenchResult:
    """Figures of one contender; ``values`` holds every measured run of each metric, ``backend`` what ran them if it says so."""

    name: str
    load_s: float
    peak_rss_mb: float
    values: dict[str, list[float]]
    backend: str | None = None

    def median(self, metric: str) -> float:
        return statistics.median(self.values[metric])

    def to_json(self) -> dict[str, Any]:
        medians = {metric: self.median(metric) for metric in self.values}
        figures = {"load_s": self.load_s, "peak_rss_mb": self.peak_rss_mb, **medians}
        return {"name": self.name, "backend": self.backend, **figures, "values": self.values}


def bench_bundles(bundles: Sequence[str | Path], task: BenchTask) -> list[BenchResult]:
    """Time bundles in turn.

    Raises:
        StsExportError: whatever a bundle raises when it is opened or run.
    """
    contenders = [Contender(str(bundle), "sts_export.measuring.bench:open_pipeline", str(bundle)) for bundle in bundles]
    return bench(contenders, task)


class PipelineRunner:
    """A bundle under the pipeline."""

    def __init__(self, target: str, task: BenchTask) -> None:
        from sts_export.generation.pipeline import Pipeline
        from sts_export.media.synthetic import synthetic_image

        self._pipeline = Pipeline(target, threads=task.threads, backend=task.backend)
        self._image = task.image or synthetic_image(0)
        self._task = task
        self.backend = self._pipeline.backend_name

    def __call__(self) -> dict[str, float]:
        task = self._task
        result = self._pipeline.generate(task.prompt, self._image, max_new_tokens=task.max_new_tokens, ignore_eos=True)
        timings = result.timings_ms
        assert timings.decode_per_token is not None
        return {
            "first_token_ms": timings.first_token,
            "decode_ms_per_token": timings.decode_per_token,
            "selection_ms": timings.select,
        }


def open_pipeline(target: str, task: BenchTask) -> Runner:
    """A bundle under the pipeline."""
    return PipelineRunner(target, task)


def bench(contenders: Sequence[Contender], task: BenchTask) -> list[BenchResult]:
    """Load each contender once, warm it up, then run all of them in turn ``task.repeats`` times."""
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[Any, Connection]] = []
    try:
        loads: list[tuple[float, str | None]] = []
        for contender in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, contender, task), daemon=True)
            process.start()
            theirs.close()
            workers.append((process, ours))
            loads.append(_receive(ours, contender))
        runs: list[list[dict[str, float]]] = [[] for _ in contenders]
        for _ in range(task.repeats):
            for (_, connection), contender, values in zip(workers, contenders, runs, strict=True):
                _send(connection, "run", contender)
                values.append(_receive(connection, contender))
        results = []
        for (_, connection), contender, (load, backend), values in zip(workers, contenders, loads, runs, strict=True):
            _send(connection, "end", contender)
            peak = _receive(connection, contender)
            by_metric = {metric: [run[metric] for run in values] for metric in values[0]}
            results.append(BenchResult(contender.name, load, peak, by_metric, backend))
        return results
    except BaseException:
        for process, _ in workers:
            process.kill()
        raise
    finally:
        for process, connection in workers:
            connection.close()
            process.join(timeout=5)
            process.kill()


def _send(connection: Connection, message: str, contender: Contender) -> None:
    try:
        connection.send(message)
    except OSError:
        raise StsExportError(f"the benchmark process of {contender.name} died; run it alone to see why") from None


def _receive(connection: Connection, contender: Contender) -> Any:
    try:
        answer = connection.recv()
    except (EOFError, OSError):
        raise StsExportError(f"the benchmark process of {contender.name} died; run it alone to see why") from None
    if isinstance(answer, StsExportError):
        raise answer
    return answer


def _work(connection: Connection, contender: Contender, task: BenchTask) -> None:
    try:
        started = time.perf_counter()
        module, _, function = contender.opener.partition(":")
        run: Runner = getattr(importlib.import_module(module), function)(contender.target, task)
        load_s = time.perf_counter() - started
        run()
        connection.send((load_s, getattr(run, "backend", None)))
        while connection.recv() == "run":
            connection.send(run())
        connection.send(peak_rss_mb())
    except StsExportError as error:
        connection.send(error)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone or was interrupted; it reports


def peak_rss_mb() -> float:
    """Largest resident set of this process, in MB.

    Not ru_maxrss where it can be helped: a child starts with its parent's.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def format_table(results: Sequence[BenchResult]) -> str:
    """Medians, and ratios to the last contender."""
    metrics = [metric for metric in METRICS if all(metric in result.values for result in results)]
    width = max(len(result.name) for result in results) + 2
    header = f"{'':<{width}}{'load s':>10}" + "".join(f"{metric:>22}" for metric in metrics) + f"{'peak RSS MB':>14}"
    lines = [header]
    for result in results:
        cells = "".join(f"{result.median(metric):>22.1f}" for metric in metrics)
        lines.append(f"{result.name:<{width}}{result.load_s:>10.2f}{cells}{result.peak_rss_mb:>14.0f}")
    base = results[-1]
    for result in results[:-1]:
        ratios = "".join(f"{result.median(metric) / base.median(metric):>22.3f}" for metric in metrics)
        rss = result.peak_rss_mb / base.peak_rss_mb
        lines.append(f"{'ratio':<{width}}{result.load_s / base.load_s:>10.2f}{ratios}{rss:>14.2f}")
    return "\n".join(lines)
