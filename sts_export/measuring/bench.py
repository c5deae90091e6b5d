"""Bundles timed against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sts_export.errors import RequestError
from sts_export.measuring.turns import Contender, Outcome, Rules, Runner, medians, take_turns
from sts_export.pruning.per_request import Budget, Counts

METRICS = ("first_token_ms", "decode_ms_per_token", "selection_ms")


@dataclass(frozen=True)
class BenchTask:
    """What is run: ``max_new_tokens`` greedy tokens, end tokens ignored.

    ``image`` None takes a generated picture, ``backend`` and ``plugins`` None what a pipeline chooses, ``budget`` and ``keep``
    None what a bundle was exported for.
    """

    image: str | None
    prompt: str
    max_new_tokens: int
    repeats: int
    threads: int | None = None
    backend: str | None = None
    plugins: str | None = None
    budget: Budget | None = None
    keep: Counts | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.max_new_tokens < 2:
            raise RequestError("a benchmark needs at least 1 repeat and 2 new tokens")


@dataclass(frozen=True)
class BenchResult:
    """Figures of one contender.

    ``values`` holds every measured run of each metric; ``backend`` is what ran them and ``operators`` the library whose kernels
    chose the tokens, if it says so.
    """

    name: str
    load_s: float
    peak_rss_mb: float
    values: dict[str, list[float]]
    backend: str | None = None
    operators: str | None = None

    def median(self, metric: str) -> float:
        return medians(self.values)[metric]

    def to_json(self) -> dict[str, Any]:
        figures = {"load_s": self.load_s, "peak_rss_mb": self.peak_rss_mb, **medians(self.values)}
        ran = {"name": self.name, "backend": self.backend, "operators": self.operators}
        return {**ran, **figures, "values": self.values}


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

        self._pipeline = Pipeline(target, threads=task.threads, backend=task.backend, plugins=task.plugins)
        self._image = task.image or synthetic_image(0)
        self._task = task

    def run(self) -> dict[str, float]:
        task = self._task
        asked: dict[str, Any] = {"budget": task.budget, "keep": task.keep, "max_new_tokens": task.max_new_tokens}
        result = self._pipeline.generate(task.prompt, self._image, ignore_eos=True, **asked)
        timings = result.timings_ms
        assert timings.decode_per_token is not None
        return {
            "first_token_ms": timings.first_token,
            "decode_ms_per_token": timings.decode_per_token,
            "selection_ms": timings.select,
        }

    def describe(self) -> dict[str, Any]:
        return {"backend": self._pipeline.backend_name, "operators": self._pipeline.operators}


def open_pipeline(target: str, task: BenchTask) -> Runner:
    """A bundle under the pipeline."""
    return PipelineRunner(target, task)


def bench(contenders: Sequence[Contender], task: BenchTask) -> list[BenchResult]:
    """Load each contender, warm it up, then run all of them in turn ``task.repeats`` times.

    Raises:
        StsExportError: one of them failed.
    """
    return [_result(outcome) for outcome in take_turns(contenders, task, Rules(task.repeats))]


def _result(outcome: Outcome) -> BenchResult:
    assert outcome.load_s is not None and outcome.peak_rss_mb is not None
    ran = {name: outcome.details.get(name) for name in ("backend", "operators")}
    return BenchResult(outcome.name, outcome.load_s, outcome.peak_rss_mb, outcome.values, **ran)


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
