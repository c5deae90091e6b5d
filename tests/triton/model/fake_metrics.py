"""The metrics of a Triton server that does not exist, with the behaviour that 2.51 showed on real ones.

Uses that ended the real server are assertions here.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]


class TritonModelException(Exception):
    """As ``pb_utils`` has it."""


@dataclass
class Values:
    """Of one set of labels, whoever uses it; ``removed``: by somebody, and a use of it by others ends the server."""

    value: float = 0.0
    buckets: list[float] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    removed: bool = False


class FakeServer:
    """What several processes of the Python backend share.

    Args:
        metrics: False: as built without them.
    """

    def __init__(self, metrics: bool = True) -> None:
        self.metrics = metrics
        self.kinds: dict[str, tuple[Kind, str]] = {}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], Values] = {}
        self.warnings: list[str] = []
        self.sent = 0

    def process(self) -> Any:
        """``triton_python_backend_utils`` of one process."""
        return SimpleNamespace(
            MetricFamily=_FamilyMaker(self),
            TritonModelException=TritonModelException,
            Logger=SimpleNamespace(log_warn=self.warnings.append),
        )

    def text(self) -> str:
        """At /metrics."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for name, (kind, description) in self.kinds.items():
            yield f"# HELP {name} {description}"
            yield f"# TYPE {name} {kind}"
            for (family, labels), found in self.values.items():
                if family != name:
                    continue
                pairs = [f'{key}="{value}"' for key, value in sorted(labels)]
                if kind != "histogram":
                    yield f"{name}{{{','.join(pairs)}}} {found.value:.17g}"
                    continue
                yield f"{name}_count{{{','.join(pairs)}}} {found.counts.total()}"
                yield f"{name}_sum{{{','.join(pairs)}}} {found.value:.17g}"
                for index, bound in enumerate([*found.buckets, None]):
                    least = "+Inf" if bound is None else f"{bound:g}"
                    below = sum(number for place, number in found.counts.items() if place <= index)
                    within = ",".join([*pairs, f'le="{least}"'])
                    yield f"{name}_bucket{{{within}}} {below}"


class _FamilyMaker:
    COUNTER: Kind = "counter"
    GAUGE: Kind = "gauge"
    HISTOGRAM: Kind = "histogram"

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def __call__(self, *, name: str, description: str, kind: Kind) -> _Family:
        if not self._server.metrics:
            raise TritonModelException("Error when creating MetricFamily: metrics not supported")
        if self._server.kinds.setdefault(name, (kind, description))[0] != kind:
            raise TritonModelException("Family name already exists with different type")
        return _Family(self._server, name, kind)


class _Family:
    def __init__(self, server: FakeServer, name: str, kind: Kind) -> None:
        self._server, self._name, self._kind = server, name, kind

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> _Metric:
        assert all(isinstance(value, str) for value in labels.values()), "the server ends"
        if (self._kind == "histogram") != isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list of a histogram.")
        key = self._name, frozenset(labels.items())
        values = self._server.values.setdefault(key, Values(buckets=buckets or []))
        return _Metric(self._server, self._kind, key, values)


class _Metric:
    def __init__(self, server: FakeServer, kind: Kind, key: Any, values: Values) -> None:
        self._server, self._kind, self._key, self._values = server, kind, key, values
        self._used = threading.Lock()

    def increment(self, value: float) -> None:
        with self._use("counter", "gauge"):
            assert self._kind == "gauge" or value >= 0, "the server ends"
            self._values.value += value

    def set(self, value: float) -> None:
        with self._use("gauge"):
            self._values.value = value

    def observe(self, value: float) -> None:
        with self._use("histogram"):
            self._values.value += value
            self._values.counts[bisect_left(self._values.buckets, value)] += 1

    def __del__(self) -> None:
        self._values.removed = True
        self._server.values.pop(self._key, None)

    @contextmanager
    def _use(self, *kinds: Kind) -> Iterator[None]:
        assert self._kind in kinds and not self._values.removed, "the server ends"
        assert self._used.acquire(blocking=False), "two threads at one metric: the server ends"
        try:
            self._server.sent += 1
            yield
        finally:
            self._used.release()
