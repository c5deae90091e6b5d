"""What stands behind the addresses: a model that is loaded, answers, and is taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sts_export.generation.pipeline import Pipeline
from sts_export.generation.scheduling.scheduler import Load, Scheduler
from sts_export.serving.problems import BROKEN, DRAINING, LOADING, Problem, ProblemError
from sts_export.serving.settings import Settings


@dataclass(frozen=True)
class Engine:
    """A bundle that is ready to answer."""

    pipeline: Pipeline
    scheduler: Scheduler


class Service:
    """State of a server; all of it is the event loop's.

    Args:
        settings: of the server.
        engine: None until it is loaded.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings, self.engine = settings, engine
        self.draining = False
        self._admitted = 0

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine is not None and self.engine.scheduler.is_open and not self.draining

    @property
    def broken(self) -> bool:
        """Whether the scheduler has failed: only a new server helps."""
        return self.engine is not None and not self.engine.scheduler.is_open and not self.draining

    @property
    def load(self) -> Load:
        """Of the scheduler; nothing while there is none."""
        return Load(0, 0, 0) if self.engine is None else self.engine.scheduler.load

    @contextmanager
    def admitted(self) -> Iterator[Engine]:
        """One request's stay.  What waits takes memory: so all of them are counted, from the first byte to the answer's end.

        Raises:
            ProblemError: not ready, or as many are there as may.
        """
        if self.draining:
            raise ProblemError(DRAINING)
        if self.engine is None:
            raise ProblemError(LOADING)
        if self.broken:
            raise ProblemError(BROKEN)
        if self._admitted >= self.settings.most_admitted:
            problem = f"{self._admitted} requests are here already; send it again later"
            raise ProblemError(Problem(429, problem, code="overloaded"))
        self._admitted += 1
        try:
            yield self.engine
        finally:
            self._admitted -= 1
