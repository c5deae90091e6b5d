"""What is asked, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sts_export.media.images import ImageSource

Picture = ImageSource | Callable[[], ImageSource]
# Of each stratum [clusters, columns] or, summed, [..., columns] float64.
Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Question:
    """One request.

    Args:
        id: no other question of the task has it.
        prompt: as the model gets it, without the chat template.
        images: a picture each: what :func:`sts_export.media.images.load_image` takes, or what makes it.
        truth: right answers, or those of all annotators.
        kind: results are also counted by it.
        unit: questions that count as one, which is right if all of them are; empty: this one alone.
        group: what belongs together in a metric, such as the questions about one picture.
        options: texts of the answers to choose from, in the order of their letters.
    """

    id: str
    prompt: str
    images: tuple[Picture, ...]
    truth: tuple[str, ...]
    kind: str = "all"
    unit: str = ""
    group: str = ""
    options: tuple[str, ...] = ()

    @property
    def counts_as(self) -> str:
        return self.unit or self.id


@dataclass(frozen=True)
class Scored:
    """An answer and its score, from 0 (wrong) to 1 (right)."""

    question: Question
    answer: str
    score: float


class Task(Protocol):
    """A benchmark: questions, and how answers to them are scored.

    Attributes:
        name: as ``--task`` takes it.
        summary: what it is, in half a line.
        layout: what has to be in the folder of ``--data``; empty: nothing is read.
        max_new_tokens: of an answer.
        score_name: what ``headline`` is.
        usual_limit: questions that are asked where nobody says how many; None for all.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def layout(self) -> str: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def score_name(self) -> str: ...

    @property
    def usual_limit(self) -> int | None: ...

    def digest(self, data: Path) -> str:
        """Of the annotations: other ones make another evaluation.

        Raises:
            RequestError: a file is missing or cannot be read.
        """

    def questions(self, data: Path) -> Iterator[Question]:
        """In the order of the annotations; those that count as one follow each other.

        Raises:
            RequestError: a file is missing, cannot be read, or is not what it should be.
        """

    def score(self, question: Question, answer: str) -> float:
        """From 0 to 1."""

    def columns(self, scored: Sequence[Scored]) -> Columns:
        """What ``headline`` needs the sums of: strata that are drawn from separately, and rows that are drawn whole."""

    def headline(self, sums: Columns) -> NDArray[np.float64]:
        """[...] the score that papers print, in their unit, of sums [..., columns]."""

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Other figures of the benchmark, for JSON."""


def first(questions: Iterable[Question], limit: int | None) -> list[Question]:
    """The first ``limit`` questions, or units where several count as one."""
    taken: list[Question] = []
    units: set[str] = set()
    for question in questions:
        if question.counts_as not in units and len(units) == limit:
            break
        units.add(question.counts_as)
        taken.append(question)
    return taken


def units(scored: Iterable[Scored]) -> dict[str, tuple[str, float]]:
    """Unit -> its kind, and the lowest score of its questions."""
    found: dict[str, tuple[str, float]] = {}
    for one in scored:
        name = one.question.counts_as
        _, lowest = found.get(name, ("", 1.0))
        found[name] = one.question.kind, min(lowest, one.score)
    return found


class PercentRight:
    """The score is the mean over all units, in percent."""

    score_name = "accuracy"
    usual_limit: int | None = None

    def columns(self, scored: Sequence[Scored]) -> Columns:
        scores = [score for _, score in units(scored).values()]
        return {"all": np.array([scores, np.ones(len(scores))], np.float64).T}

    def headline(self, sums: Columns) -> NDArray[np.float64]:
        share: NDArray[np.float64] = 100 * sums["all"][..., 0] / sums["all"][..., 1]
        return share

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        return {}
