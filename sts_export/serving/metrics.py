"""What Prometheus reads at /metrics: :mod:`.measures`, and the responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from sts_export.generation.scheduling.answers import Event
from sts_export.serving.measures import BUCKETS, COUNTS, GAUGES, LABELS, REJECTED, TIMES, TOTALS, snapshot, watch
from sts_export.serving.service import Service


class Metrics:
    """Of one server.

    Args:
        service: what is running, waiting and cached.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service) -> None:
        own = self._registry = CollectorRegistry()
        own.register(_Now(service))
        self._times = {name: Histogram(f"sts_{name}", text, buckets=BUCKETS, registry=own) for name, text in TIMES.items()}
        self._counts = {
            name: Counter(f"sts_{name}", text, [LABELS[name]] if name in LABELS else [], registry=own)
            for name, text in COUNTS.items()
        }
        self._responses = Counter("sts_http_responses", "Responses by route and status", ["route", "status"], registry=own)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def observe(self, name: str, seconds: float) -> None:
        """As :class:`.measures.Sink`."""
        self._times[name].observe(seconds)

    def count(self, name: str, number: int, *values: str) -> None:
        """As :class:`.measures.Sink`."""
        counter = self._counts[name]
        (counter.labels(*values) if values else counter).inc(number)

    def responded(self, route: str, status: int) -> None:
        """A response was sent; ``route`` is a path of this server, never what a client made up."""
        self._responses.labels(route, str(status)).inc()
        if status == 429:
            self.count(REJECTED, 1)

    def watch(self, arrived: float, started: float) -> Callable[[Event], None]:
        """As :func:`.measures.watch`."""
        return watch(self, arrived, started)


class _Now:
    """Read when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        engine = self._service.engine
        now = snapshot(self._service.load, None if engine is None else engine.pipeline)
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"sts_{name}", text, value=now.gauges[name])
        for name, text in TOTALS.items():
            yield CounterMetricFamily(f"sts_{name}", text, value=now.totals[name])
