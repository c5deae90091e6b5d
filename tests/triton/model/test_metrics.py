"""Among Triton's metrics are the same numbers under the same names as at /metrics of the other server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as families

from sts_export.errors import BackendError, BusyError
from sts_export.generation.result import GenerationResult, KvCacheBytes, Timings, VisualTokens
from sts_export.generation.scheduling.answers import Cancelled, Event, Failed, Finished, Piece
from sts_export.generation.scheduling.scheduler import Load
from sts_export.serving.measures import snapshot
from sts_export.serving.metrics import Metrics
from sts_export.triton.model.metrics import ModelMetrics
from tests.triton.model.fake_metrics import FakeServer, TritonModelException

LABELS = {"model": "vlm", "version": "1", "instance": "vlm_0_0"}
RESULT = GenerationResult(
    text="a b",
    token_ids=[1, 2, 3],
    finish_reason="stop",
    prompt_tokens=30,
    cached_tokens=5,
    visual_tokens=VisualTokens(9, 6, 3),
    average_visual_tokens=5.0,
    budget="5",
    newline_tokens=0,
    kept_stage1=[[0, 1, 2, 3, 4, 5]],
    kept_stage2=[0, 1, 2],
    timings_ms=Timings(1, 2, 3, 4, 5, 6, 7.0),
    kv_cache_bytes=KvCacheBytes(1, 2),
)
EVENTS: tuple[Event, ...] = (
    Piece("a", 1),
    Piece(" b", 3),
    Finished(RESULT, 8.0),
    Failed(BackendError("no memory")),
    Failed(BusyError("waited")),
    Cancelled(7),
)


class Model:
    """A model in a server, with a load and caches that the test decides."""

    def __init__(self, server: FakeServer, labels: dict[str, str] = LABELS) -> None:
        self.load, self.pipeline = Load(0, 0, 4), SimpleNamespace(feature_lookups=(0, 0), selection_lookups=(0, 0))
        self.metrics = ModelMetrics(server.process(), labels, lambda: snapshot(self.load, self.pipeline))  # type: ignore[arg-type]

    def run(self) -> None:
        self.load, self.pipeline.feature_lookups, self.pipeline.selection_lookups = Load(1, 2, 4), (3, 4), (5, 6)
        told = self.metrics.watch(0.25, 0.75)
        for event in EVENTS:
            told(event)
        self.metrics.rejected()
        self.metrics.update()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = iter(range(1, 1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels -> value; without those that say where a value comes from, and without when a counter was made."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in families(text):
        for name, labels, value, *_ in family.samples:
            if not name.endswith("_created"):
                more = {key: float(text) if key == "le" else text for key, text in labels.items()}
                kept = tuple(sorted((key, str(text)) for key, text in more.items() if key not in (*LABELS, "process")))
                assert (name, kept) not in found
                found[name, kept] = value
    return found


def value(server: FakeServer, name: str, **labels: str) -> float:
    """The sum of all that have these labels."""
    every = [sample for family in families(server.text()) for sample in family.samples]
    return sum(one.value for one in every if one.name == name and labels.items() <= one.labels.items())


def test_same_as_of_the_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    model = Model(server)
    model.run()
    ticks: Iterator[float] = iter(range(1, 1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    service: Any = SimpleNamespace(load=model.load, engine=SimpleNamespace(pipeline=model.pipeline))
    other = Metrics(service)
    told = other.watch(0.25, 0.75)
    for event in EVENTS:
        told(event)
    other.responded("/v1/chat/completions", 429)
    wanted = {key: one for key, one in samples(other.text().decode()).items() if key[0] != "sts_http_responses_total"}
    assert samples(server.text()) == wanted

    def described(text: str) -> dict[str, tuple[str, str]]:
        found: list[Metric] = [one for one in families(text) if not one.name.endswith(("_created", "http_responses"))]
        return {one.name: (one.documentation, one.type) for one in found}

    assert described(server.text()) == described(other.text().decode())


def test_every_value_has_the_labels() -> None:
    server = FakeServer()
    model = Model(server)
    model.run()
    for family in families(server.text()):
        for sample in family.samples:
            assert {**LABELS, "process": str(os.getpid())}.items() <= sample.labels.items()
    assert value(server, "sts_visual_tokens_total", stage="stage1") == 6
    assert value(server, "sts_request_success_total", finished_reason="stop") == 1


def test_instances_and_models_stay_apart() -> None:
    server = FakeServer()
    first, second, other = (
        Model(server, {**LABELS, **more}) for more in ({}, {"instance": "vlm_0_1"}, {"model": "x", "instance": "x_0"})
    )
    for _ in range(2):
        first.run()
    second.run()
    for labels, number in (({"instance": "vlm_0_0"}, 60), ({"instance": "vlm_0_1"}, 30), ({"model": "x"}, 0), ({}, 90)):
        assert value(server, "sts_prompt_tokens_total", **labels) == number
    other.metrics.close()
    assert value(server, "sts_num_slots") == 8


def test_nothing_is_sent_before_an_update() -> None:
    server = FakeServer()
    model = Model(server)
    for event in EVENTS:
        model.metrics.watch(0.25, 0.75)(event)
    model.metrics.rejected()
    assert server.sent == 0
    model.metrics.update()
    assert server.sent > 0 and value(server, "sts_requests_rejected_total") == 1


def test_an_update_without_news_sends_nothing() -> None:
    server = FakeServer()
    model = Model(server)
    model.run()
    sent = server.sent
    model.metrics.update()
    assert server.sent == sent
    model.load = Load(0, 0, 4)
    model.metrics.update()
    assert server.sent == sent + 3 and value(server, "sts_num_requests_running") == 0


def test_totals_are_sent_once() -> None:
    server = FakeServer()
    model = Model(server)
    for lookups, hits in (((1, 1), 1), ((1, 1), 1), ((4, 2), 4)):
        model.pipeline.feature_lookups = lookups
        model.metrics.update()
        assert value(server, "sts_feature_cache_hits_total") == hits
    assert value(server, "sts_feature_cache_misses_total") == 2


def test_a_model_that_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new process is there before the old one goes."""
    server = FakeServer()
    old = Model(server)
    old.run()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    new = Model(server)
    old.metrics.close()
    assert value(server, "sts_prompt_tokens_total") == 0 and value(server, "sts_num_slots") == 0
    new.run()
    assert value(server, "sts_prompt_tokens_total") == 30 and value(server, "sts_num_slots") == 4


def test_nothing_is_measured_after_the_end() -> None:
    server = FakeServer()
    model = Model(server)
    model.run()
    model.metrics.close()
    assert server.values == {}
    model.run()
    model.metrics.close()
    assert server.values == {} and server.warnings == []


def test_a_server_without_metrics() -> None:
    server = FakeServer(metrics=False)
    model = Model(server)
    model.run()
    model.metrics.close()
    assert server.values == {} and server.sent == 0
    assert server.warnings == ["requests are not measured: Error when creating MetricFamily: metrics not supported"]


def test_a_server_that_refuses_a_value() -> None:
    """A request does not fail of it, and the log has one line."""
    server = FakeServer()
    model = Model(server)

    class Refusing:
        def observe(self, value: float) -> None:
            raise TritonModelException("Failed to observe metric value: the server ends")

    model.metrics._metrics["request_queue_time_seconds",] = Refusing()  # type: ignore[assignment]
    for _ in range(2):
        model.run()
    assert server.warnings == ["requests are not measured: Failed to observe metric value: the server ends"]


def test_threads_share_it() -> None:
    server = FakeServer()
    model = Model(server)

    def work(_: int) -> None:
        for _ in range(50):
            model.metrics.count("visual_tokens", 2, "input")
            model.metrics.observe("request_queue_time_seconds", 0.5)
            model.metrics.update()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert value(server, "sts_visual_tokens_total", stage="input") == 800
    assert value(server, "sts_request_queue_time_seconds_count") == 400


def test_a_server_of_ours_is_not_needed() -> None:
    """Nor are its packages, which a container of Triton need not have."""
    without = "import sys; sys.modules.update(fastapi=None, prometheus_client=None)"
    command = [sys.executable, "-c", f"{without}; import sts_export.triton.model.metrics"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
