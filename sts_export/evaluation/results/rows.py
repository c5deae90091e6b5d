"""One bundle with one budget on one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sts_export.errors import RequestError
from sts_export.evaluation.amounts import drops_nothing, label
from sts_export.evaluation.journal import Answer
from sts_export.evaluation.questions import Question, Scored, Task, units
from sts_export.evaluation.results.statistics import Interval, bootstrap, mean_interval
from sts_export.pruning.config import PruningConfig


@dataclass(frozen=True)
class Row:
    """What came of it.

    Args:
        bundle: as it was given.
        budget: of the bundle or of its requests; ``K,K'`` for counts.
        unpruned: it drops nothing.
        units: unit -> its kind and its score; a unit is a question, or several that count as one.
        accuracy, interval: mean score of the units, as a fraction, and its 95 % confidence interval.
        score, score_interval: the benchmark's own score in its own unit, ``score_name`` says which.
        metrics: other figures of the benchmark.
        average_visual_tokens: of a picture's or request's tokens in a decoder layer, mean over the questions.
        first_token_ms: median over the questions of what a request alone takes to its first token.
    """

    bundle: str
    method: str
    budget: str
    keep: tuple[int, int]
    task: str
    unpruned: bool
    units: dict[str, tuple[str, float]] = field(repr=False)
    accuracy: float
    interval: Interval
    score: float
    score_name: str
    score_interval: Interval
    metrics: dict[str, Any]
    average_visual_tokens: float
    first_token_ms: float

    @property
    def name(self) -> str:
        return f"{self.bundle}@{self.budget}"

    @property
    def asked(self) -> int:
        return len(self.units)

    @property
    def right(self) -> float:
        """Sum of the scores: a whole number where an answer is right or wrong."""
        return _whole(sum(score for _, score in self.units.values()))

    @property
    def kinds(self) -> dict[str, dict[str, float]]:
        """Kind -> asked, right, accuracy."""
        scores: dict[str, list[float]] = {}
        for kind, score in self.units.values():
            scores.setdefault(kind, []).append(score)
        return {
            kind: {"asked": len(own), "right": _whole(sum(own)), "accuracy": sum(own) / len(own)}
            for kind, own in sorted(scores.items())
        }


def make_row(bundle: str, pruning: PruningConfig, task: Task, questions: Sequence[Question], answers: dict[str, Answer]) -> Row:
    """Score the answers to all questions, of which there is at least one.

    Raises:
        RequestError: an answer is missing.
    """
    if absent := [question.id for question in questions if question.id not in answers]:
        raise RequestError(f"{len(absent)} of {len(questions)} answers of {bundle} are missing; run the evaluation again")
    own = [answers[question.id] for question in questions]
    said = [(question, answer.text) for question, answer in zip(questions, own, strict=True)]
    scored = [Scored(question, text, task.score(question, text)) for question, text in said]
    results = units(scored)
    scores = [score for _, score in results.values()]
    accuracy, interval = sum(scores) / len(scores), mean_interval(scores)
    columns = task.columns(scored)
    score = float(task.headline({name: rows.sum(axis=0) for name, rows in columns.items()}))
    is_accuracy = task.score_name == "accuracy"
    score_interval = (100 * interval[0], 100 * interval[1]) if is_accuracy else bootstrap(columns, task.headline)
    return Row(
        bundle=bundle,
        method=pruning.method,
        budget=label(pruning),
        keep=(pruning.keep_stage1, pruning.keep_stage2),
        task=task.name,
        unpruned=drops_nothing(pruning),
        units=results,
        accuracy=accuracy,
        interval=interval,
        score=score,
        score_name=task.score_name,
        score_interval=score_interval,
        metrics=task.metrics(scored),
        average_visual_tokens=float(np.mean([answer.average_visual_tokens for answer in own])),
        first_token_ms=float(np.median([answer.first_token_ms for answer in own])),
    )


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value
