"""What is measured of requests, among Triton's own metrics: the names of ``sts-export serve``, labelled by model and instance.

Triton's server keeps the values and this process sends it what to add.  Seen of 2.51, and why this module is as it is:

- A name of a family is exposed as it is given: so counters are given Prometheus' ``_total``.
- Families of one name are one family, whoever makes them; so are metrics of the same labels.  But who drops its metric takes it
  from the others, too, and the server crashes when they go on.  While a model is loaded anew, its old instance and the new one
  have the same name: so a label says which process it is.
- A metric that is not dropped stays in the server with its last value: so ``close`` drops them.  Those of a process that was
  killed stay until the server ends.
- The server crashes when two threads use one metric at once, and at some wrong uses, such as a counter that would fall.  So
  one lock is around all uses, and observations wait for ``update``: neither a scheduler nor a request waits for the server.
- A server that was started with ``--allow-metrics=false`` takes everything and shows nothing.  One that was built without
  metrics refuses families: then nothing is measured.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sts_export.generation.scheduling.answers import Event
from sts_export.serving.measures import BUCKETS, COUNTS, GAUGES, LABELS, REJECTED, TIMES, TOTALS, Snapshot, watch


class Metric(Protocol):
    """``pb_utils.Metric``: values of one family under one set of labels."""

    def increment(self, value: float) -> None: ...
    def set(self, value: float) -> None: ...
    def observe(self, value: float) -> None: ...


class MetricFamily(Protocol):
    """``pb_utils.MetricFamily``."""

    def Metric(self, *, labels: dict[str, str], buckets: list[float] | None = None) -> Metric: ...


class BackendUtils(Protocol):
    """What this module uses of ``triton_python_backend_utils``, which exists only in a process of Triton's Python backend."""

    # Made with name, description and kind; the kinds are its attributes.
    MetricFamily: Any
    TritonModelException: type[Exception]
    Logger: Any


class ModelMetrics:
    """Of one instance of a model; threads may share it.

    Args:
        pb_utils: Triton's module.
        labels: model, version and instance.
        now: what is running, waiting and cached; read by :meth:`update`.
    """

    def __init__(self, pb_utils: BackendUtils, labels: Mapping[str, str], now: Callable[[], Snapshot]) -> None:
        self._pb_utils, self._now = pb_utils, now
        self._labels = {**labels, "process": str(os.getpid())}
        self._families: dict[str, MetricFamily] = {}
        self._metrics: dict[tuple[str, ...], Metric] = {}
        self._using = threading.Lock()  # around all that Triton is told
        # What it was not told yet:
        self._waiting = threading.Lock()
        self._observed: list[tuple[str, float]] = []
        self._counted: Counter[tuple[str, ...]] = Counter()
        self._told_totals = dict.fromkeys(TOTALS, 0)
        self._told_gauges: dict[str, float] = {}
        self._measures = True
        self._tell(self._begin)

    def observe(self, name: str, seconds: float) -> None:
        """As :class:`sts_export.serving.measures.Sink`."""
        if self._measures:
            with self._waiting:
                self._observed.append((name, seconds))

    def count(self, name: str, number: int, *values: str) -> None:
        """As :class:`sts_export.serving.measures.Sink`."""
        if self._measures:
            with self._waiting:
                self._counted[name, *values] += number

    def watch(self, arrived: float, started: float) -> Callable[[Event], None]:
        """As :func:`sts_export.serving.measures.watch`."""
        return watch(self, arrived, started)

    def rejected(self) -> None:
        """A request was refused because others are served, at once or after a wait."""
        self.count(REJECTED, 1)

    def update(self) -> None:
        """Tell Triton what has come since the last time: about 50 microseconds a value that is new."""
        self._tell(self._send)

    def close(self) -> None:
        """Take this process's values out of the server, after which nothing is measured."""
        self._tell(self._send)
        with self._using:
            self._measures = False
            self._metrics.clear()  # before the families that they are of
            self._families.clear()

    def _tell(self, what: Callable[[], None]) -> None:
        """Requests matter more than numbers: where Triton refuses one, a line of its log says so and no more are told."""
        with self._using:
            if not self._measures:
                return
            try:
                what()
            except self._pb_utils.TritonModelException as error:
                self._measures = False
                self._pb_utils.Logger.log_warn(f"requests are not measured: {error}")

    def _begin(self) -> None:
        family = self._pb_utils.MetricFamily
        for texts, kind, end in (
            (TIMES, family.HISTOGRAM, ""),
            (GAUGES, family.GAUGE, ""),
            ({**COUNTS, **TOTALS}, family.COUNTER, "_total"),
        ):
            for name, text in texts.items():
                self._families[name] = family(name=f"sts_{name}{end}", description=text, kind=kind)
                if name not in LABELS:  # those that have one are shown with its first value
                    self._metric(name)

    def _metric(self, name: str, *values: str) -> Metric:
        found = self._metrics.get((name, *values))
        if found is None:
            labels = {**self._labels, **({LABELS[name]: values[0]} if values else {})}
            more: dict[str, Any] = {"buckets": [float(bound) for bound in BUCKETS]} if name in TIMES else {}
            found = self._metrics[name, *values] = self._families[name].Metric(labels=labels, **more)
        return found

    def _send(self) -> None:
        now = self._now()
        with self._waiting:
            observed, counted = self._observed, self._counted
            self._observed, self._counted = [], Counter()
        for name, seconds in observed:
            self._metric(name).observe(seconds)
        for key, number in counted.items():
            if number > 0:
                self._metric(*key).increment(number)
        for name, number in now.totals.items():
            if number > self._told_totals[name]:
                self._metric(name).increment(number - self._told_totals[name])
                self._told_totals[name] = number
        for name, value in now.gauges.items():
            if self._told_gauges.get(name) != value:
                self._metric(name).set(value)
                self._told_gauges[name] = value
