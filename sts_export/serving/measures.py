"""What is measured of requests, under vLLM's names, and what only pruning has; whoever shows it puts ``sts_`` before them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sts_export.errors import BusyError
from sts_export.generation.pipeline import Pipeline
from sts_export.generation.scheduling.answers import Cancelled, Event, Failed, Finished, Piece
from sts_export.generation.scheduling.scheduler import Load

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)  # seconds
TIMES = {
    "request_queue_time_seconds": "Time that requests waited for a slot",
    "request_vision_time_seconds": "Vision encoder, of all pictures of a request",
    "request_selection_time_seconds": "Stage 1, of all pictures of a request",
    "request_prefill_time_seconds": "Prompt through both parts of the decoder, stage 2 included",
    "request_decode_time_seconds": "From the first token to the last one",
    "time_to_first_token_seconds": "From the head of a request to its first token",
    "inter_token_latency_seconds": "Between two tokens of an answer",
    "e2e_request_latency_seconds": "From the head of a request to the end of its answer",
}
REJECTED = "requests_rejected"
COUNTS = {
    "prompt_tokens": "Prompt tokens that the decoder saw, visual ones included",
    "prefix_cache_queries": "Prompt tokens that were looked for in the caches: all of complete answers",
    "prefix_cache_hits": "Prompt tokens that were found in the caches, and not computed again",
    "generation_tokens": "Generated tokens, those of cancelled answers included",
    "requests_cancelled": "Requests whose client went away",
    "requests_failed": "Requests that ended with an error after they had been taken",
    REJECTED: "Requests that were refused because others are served, at once or after a wait (status 429)",
    "visual_tokens": "Visual tokens: of all pictures, after stage 1, after stage 2",
    "request_success": "Answers, cancelled ones too",
}
LABELS = {"visual_tokens": "stage", "request_success": "finished_reason"}  # of COUNTS; the others have none
GAUGES = {
    "num_requests_running": "Requests in slots",
    "num_requests_waiting": "Requests that wait for a slot",
    "num_slots": "Slots of the KV caches",
    "kv_cache_usage_perc": "Share of slots in use, from 0 to 1",
}
TOTALS = {
    "feature_cache_hits": "Pictures whose features or kept tokens were found",
    "feature_cache_misses": "Pictures that the vision encoder ran for",
    "selection_cache_hits": "Pictures whose kept tokens were found",
    "selection_cache_misses": "Pictures that stage 1 ran for",
}


class Sink(Protocol):
    """Whom measurements are told; on any thread."""

    def observe(self, name: str, seconds: float) -> None:
        """One more of TIMES."""

    def count(self, name: str, number: int, *values: str) -> None:
        """More of COUNTS; ``values``: of its label, where it has one."""


@dataclass(frozen=True)
class Snapshot:
    """What is read when somebody looks: values of GAUGES, and what TOTALS have come to since the pipeline was opened."""

    gauges: dict[str, float]
    totals: dict[str, int]


def snapshot(load: Load, pipeline: Pipeline | None) -> Snapshot:
    """Of this moment; ``pipeline`` is None where none is open yet."""
    usage = load.running / load.slots if load.slots else 0.0
    features, selections = ((0, 0), (0, 0)) if pipeline is None else (pipeline.feature_lookups, pipeline.selection_lookups)
    return Snapshot(
        dict(zip(GAUGES, (load.running, load.waiting, load.slots, usage), strict=True)),
        dict(zip(TOTALS, (*features, *selections), strict=True)),
    )


def watch(sink: Sink, arrived: float, started: float) -> Callable[[Event], None]:
    """To be told the events of one request, on any thread.

    A request that waited too long for a slot (BusyError) is nobody's failure: who answers it counts it as rejected.

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
                sink.observe("inter_token_latency_seconds", (now - before[0]) / (event.tokens - before[1]))
            before = now, event.tokens
        elif isinstance(event, Finished):
            _finished(sink, event, started - arrived, now - arrived)
        elif isinstance(event, Failed):
            if not isinstance(event.error, BusyError):
                sink.count("requests_failed", 1)
        elif isinstance(event, Cancelled):
            sink.count("requests_cancelled", 1)
            sink.count("generation_tokens", event.tokens)
            sink.count("request_success", 1, "cancelled")

    return told


def _finished(sink: Sink, event: Finished, before: float, seconds: float) -> None:
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
        sink.observe(name, value / 1e3)
    sink.count("prompt_tokens", result.prompt_tokens)
    sink.count("prefix_cache_queries", result.prompt_tokens)
    sink.count("prefix_cache_hits", result.cached_tokens)
    sink.count("generation_tokens", len(result.token_ids))
    sink.count("visual_tokens", result.visual_tokens.total, "input")
    sink.count("visual_tokens", result.visual_tokens.stage1, "stage1")
    sink.count("visual_tokens", result.visual_tokens.stage2, "stage2")
    sink.count("request_success", 1, result.finish_reason)
