"""What Prometheus reads at /metrics: vLLM's names, with ``sts_`` before them, and what only pruning has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from sts_export.errors import BusyError
from sts_export.generation.scheduling.answers import Cancelled, Event, Failed, Finished, Piece
from sts_export.serving.service import Service

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_TIMES = {
    "request_queue_time_seconds": "Time that requests waited for a slot",
    "request_vision_time_seconds": "Vision encoder, of all pictures of a request",
    "request_selection_time_seconds": "Stage 1, of all pictures of a request",
    "request_prefill_time_seconds": "Prompt through both parts of the decoder, stage 2 included",
    "request_decode_time_seconds": "From the first token to the last one",
    "time_to_first_token_seconds": "From the head of a request to its first token",
    "inter_token_latency_seconds": "Between two tokens of an answer",
    "e2e_request_latency_seconds": "From the head of a request to the end of its answer",
}
_COUNTS = {
    "prompt_tokens": "Prompt tokens that the decoder saw, visual ones included",
    "prefix_cache_queries": "Prompt tokens that were looked for in the caches: all of complete answers",
    "prefix_cache_hits": "Prompt tokens that were found in the caches, and not computed again",
    "generation_tokens": "Generated tokens, those of cancelled answers included",
    "requests_cancelled": "Requests whose client went away",
    "requests_failed": "Requests that ended with an error after they had been taken",
    "requests_rejected": "Requests that were refused because others are served, at once or after a wait (status 429)",
}


class Metrics:
    """Of one server.

    Args:
        service: what is running, waiting and cached.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service) -> None:
        own = self._registry = CollectorRegistry()
        own.register(_Now(service))
        self._times = {name: Histogram(f"sts_{name}", text, buckets=_SECONDS, registry=own) for name, text in _TIMES.items()}
        self._counts = {name: Counter(f"sts_{name}", text, registry=own) for name, text in _COUNTS.items()}
        self._visual = Counter(
            "sts_visual_tokens", "Visual tokens: of all pictures, after stage 1, after stage 2", ["stage"], registry=own
        )
        self._success = Counter("sts_request_success", "Answers, cancelled ones too", ["finished_reason"], registry=own)
        self._responses = Counter("sts_http_responses", "Responses by route and status", ["route", "status"], registry=own)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def responded(self, route: str, status: int) -> None:
        """A response was sent; ``route`` is a path of this server, never what a client made up."""
        self._responses.labels(route, str(status)).inc()
        if status == 429:
            self._counts["requests_rejected"].inc()

    def watch(self, arrived: float, started: float) -> Callable[[Event], None]:
        """To be told the events of one request, on any thread.

        Args:
            arrived: time.perf_counter() when the request's head came.
            started: when it began to be prepared, after its body and its pictures had come.
        """
        before: tuple[float, int] | None = None

        def told(event: Event) -> None:
            nonlocal before
            now = time.perf_counter()
            if isinstance(event, Piece):
                if before is not None and event.tokens > before[1]:
                    self._times["inter_token_latency_seconds"].observe((now - before[0]) / (event.tokens - before[1]))
                before = now, event.tokens
            elif isinstance(event, Finished):
                self._finished(event, started - arrived, now - arrived)
            elif isinstance(event, Failed):
                if not isinstance(event.error, BusyError):  # waited too long: its response counts it as rejected
                    self._counts["requests_failed"].inc()
            elif isinstance(event, Cancelled):
                self._counts["requests_cancelled"].inc()
                self._counts["generation_tokens"].inc(event.tokens)
                self._success.labels("cancelled").inc()

        return told

    def _finished(self, event: Finished, before: float, seconds: float) -> None:
        """``before``: seconds that the result's own times do not count."""
        result, timings = event.result, event.result.timings_ms
        decoded = len(result.token_ids) - 1
        milliseconds = {
            "request_queue_time_seconds": event.queue_ms,
            "request_prefill_time_seconds": timings.prefill_lower + timings.prefill_upper,
            "request_decode_time_seconds": decoded * (timings.decode_per_token or 0.0),
            "time_to_first_token_seconds": before * 1e3 + timings.first_token,
            "e2e_request_latency_seconds": seconds * 1e3,
        }
        if result.kept_stage1:
            milliseconds["request_selection_time_seconds"] = timings.select
            milliseconds["request_vision_time_seconds"] = timings.vision
        for name, value in milliseconds.items():
            self._times[name].observe(value / 1e3)
        self._counts["prompt_tokens"].inc(result.prompt_tokens)
        self._counts["prefix_cache_queries"].inc(result.prompt_tokens)
        self._counts["prefix_cache_hits"].inc(result.cached_tokens)
        self._counts["generation_tokens"].inc(len(result.token_ids))
        for stage, count in (
            ("input", result.visual_tokens.total),
            ("stage1", result.visual_tokens.stage1),
            ("stage2", result.visual_tokens.stage2),
        ):
            self._visual.labels(stage).inc(count)
        self._success.labels(result.finish_reason).inc()


class _Now:
    """Read when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        load = self._service.load
        gauges = {
            "num_requests_running": ("Requests in slots", load.running),
            "num_requests_waiting": ("Requests that wait for a slot", load.waiting),
            "num_slots": ("Slots of the KV caches", load.slots),
            "kv_cache_usage_perc": ("Share of slots in use, from 0 to 1", load.running / load.slots if load.slots else 0.0),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"sts_{name}", text, value=value)
        engine = self._service.engine
        hits, misses = (0, 0) if engine is None else engine.pipeline.feature_lookups
        yield CounterMetricFamily("sts_feature_cache_hits", "Pictures whose features or kept tokens were found", value=hits)
        yield CounterMetricFamily("sts_feature_cache_misses", "Pictures that the vision encoder ran for", value=misses)
        hits, misses = (0, 0) if engine is None else engine.pipeline.selection_lookups
        yield CounterMetricFamily("sts_selection_cache_hits", "Pictures whose kept tokens were found", value=hits)
        yield CounterMetricFamily("sts_selection_cache_misses", "Pictures that stage 1 ran for", value=misses)
