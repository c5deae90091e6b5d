"""Whatever happens to a request, it has exactly one final response, and nobody else is hurt."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.errors import BackendError
from sts_export.generation.scheduling.answers import Event
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.service import Engine
from sts_export.testing.checkpoints import random_image
from sts_export.triton.model import answering
from sts_export.triton.model.answering import Answering
from sts_export.triton.settings import ModelSettings
from tests.support.scheduling.gates import Gate, until
from tests.triton.model.fake_requests import PB_UTILS, Request, TritonError

TEXT = b"What is it?"
Gated = tuple[Pipeline, Gate]


class Metrics:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.refused = 0

    def watch(self, arrived: float, started: float) -> Callable[[Event], None]:
        return self.events.append

    def rejected(self) -> None:
        self.refused += 1

    def update(self) -> None: ...


@contextmanager
def answers(vlm: Pipeline, metrics: Metrics | None = None, **options: Any) -> Iterator[tuple[Answering, Scheduler]]:
    settings = ModelSettings(**{"slots": 2, "max_queue_size": 2, **options})
    scheduler = Scheduler(vlm, slots=settings.slots, most_waiting=settings.slots + settings.max_queue_size)
    taken = Answering(Engine(vlm, scheduler), settings, PB_UTILS, metrics or Metrics())
    try:
        yield taken, scheduler
    finally:
        taken.close()


def ask(taken: Answering, **values: Any) -> Request:
    request = Request.of(**{"text_input": TEXT, "max_tokens": 5, "ignore_eos": True, **values})
    taken.take(request)
    return request


def text(response: Any) -> str:
    return str(next(one.array for one in response.output_tensors if one.label == "text_output")[0, 0].decode())


def png() -> bytes:
    stream = io.BytesIO()
    random_image(3).save(stream, "PNG")
    return stream.getvalue()


def test_stream_and_whole(gated: Gated) -> None:
    vlm, gate = gated
    gate.open()
    expected = vlm.generate(TEXT.decode(), png(), max_new_tokens=5, ignore_eos=True).text
    with answers(vlm) as (taken, _):
        assert text(ask(taken, image=png()).sender.end()) == expected
        streamed = ask(taken, image=png(), stream=True).sender
        pieces = []
        while True:
            response, is_final = streamed.next()
            pieces.append(text(response))
            if is_final:
                break
        assert "".join(pieces) == expected and pieces[-1] == ""


def test_queue_is_full(gated: Gated) -> None:
    """Free slots count: as many as there are slots and places are taken at once, whatever runs already."""
    vlm, gate = gated
    metrics = Metrics()
    with answers(vlm, metrics) as (taken, _):
        requests = [ask(taken) for _ in range(4)]
        error = ask(taken).sender.end().error
        assert error is not None and error.code == TritonError.UNAVAILABLE and "4 requests are here" in error.message
        assert metrics.refused == 1
        gate.open()
        assert all(request.sender.end().error is None for request in requests)
        assert ask(taken).sender.end().error is None, "places are free again"


def test_cancelled_while_running_and_while_waiting(gated: Gated) -> None:
    vlm, gate = gated
    metrics = Metrics()
    with answers(vlm, metrics, slots=1) as (taken, scheduler):
        running = ask(taken, stream=True)
        running.sender.next()
        waiting, other = ask(taken), ask(taken)
        until(lambda: scheduler.load.waiting == 2)
        for request in (waiting, running):
            request.sender.cancelled.set()
            if request is running:
                until(lambda: len(scheduler._cancelled) == 2)  # with the other one
                gate.open()
            error = request.sender.end().error
            assert error is not None and error.code == TritonError.CANCELLED
        assert other.sender.end().error is None
    assert len(metrics.events) >= 3


def test_cancelled_while_it_is_prepared(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never reaches the engine."""
    vlm, gate = gated
    reading, go_on = threading.Event(), threading.Event()

    def slow(value: bytes, most_bytes: int) -> bytes:
        reading.set()
        assert go_on.wait(60)
        return value

    monkeypatch.setattr(answering, "read_image", slow)
    gate.open()
    with answers(vlm) as (taken, _):
        request = ask(taken, image=png())
        assert reading.wait(60)
        request.sender.cancelled.set()
        job = next(iter(taken._jobs))
        until(lambda: job.given_up)
        go_on.set()
        error = request.sender.end().error
        assert error is not None and error.code == TritonError.CANCELLED
    assert gate.calls == []


def test_engine_that_fails(gated: Gated) -> None:
    vlm, gate = gated
    with answers(vlm) as (taken, _):
        requests = [ask(taken), ask(taken)]
        gate.error = BackendError("the GPU is gone; start again")
        gate.open()
        for request in requests:
            error = request.sender.end().error
            assert error is not None and error.code == TritonError.INTERNAL and "the GPU is gone" in error.message
        gate.error = None
        assert ask(taken).sender.end().error is None, "the next request has new caches"


def test_scheduler_that_fails(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic ends the scheduler: the model says that it is not ready, and what has to be done."""
    vlm, _ = gated
    with answers(vlm) as (taken, scheduler):
        monkeypatch.setattr(vlm._graphs, "prefill", None)
        error = ask(taken).sender.end().error
        assert error is not None and error.code == TritonError.INTERNAL
        until(lambda: not scheduler.is_open)
        assert not taken.is_open
        error = ask(taken).sender.end().error
        assert error is not None and error.code == TritonError.UNAVAILABLE and "the engine has failed" in error.message


def test_whatever_prepare_raises(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, gate = gated
    gate.open()

    def panic(*_: Any) -> None:
        raise KeyboardInterrupt("panicked\nat line 3")

    with answers(vlm) as (taken, _):
        monkeypatch.setattr(answering, "chat_request", panic)
        error = ask(taken).sender.end().error
        assert error is not None and error.code == TritonError.INTERNAL
        assert error.message == "the request could not be answered (KeyboardInterrupt: panicked at line 3)"
        monkeypatch.undo()
        assert ask(taken).sender.end().error is None


def test_row_that_fails_ends_the_others(gated: Gated) -> None:
    vlm, gate = gated
    with answers(vlm) as (taken, scheduler):
        request = ask(taken, rows=2, text_input=[TEXT, b""], max_tokens=[5, 5], ignore_eos=[True, True])
        error = request.sender.end().error
        assert error is not None and error.message.startswith("row 1 of the batch: the prompt is empty")
        gate.open()
        until(lambda: scheduler.load.running == scheduler.load.waiting == 0)
        assert not taken._jobs
        assert ask(taken).sender.end().error is None


def test_wrong_request_leaves_no_trace(gated: Gated) -> None:
    vlm, gate = gated
    gate.open()
    with answers(vlm) as (taken, _):
        for _ in range(9):  # more than there are places
            error = ask(taken, temperature=float("nan")).sender.end().error
            assert error is not None and error.code == TritonError.INVALID_ARG
        assert not taken._jobs


def test_close_answers_what_was_taken(gated: Gated) -> None:
    vlm, gate = gated
    with answers(vlm, slots=1) as (taken, _):
        requests = [ask(taken), ask(taken)]
        threading.Timer(0.05, gate.open).start()
        taken.close()
        assert all(request.sender.end().error is None for request in requests)
        error = ask(taken).sender.end().error
        assert error is not None and error.code == TritonError.UNAVAILABLE


@pytest.mark.usefixtures("without_collector")
def test_nothing_keeps_a_request_that_is_over(gated: Gated) -> None:
    """No circle of references either."""
    vlm, gate = gated
    gate.open()
    with answers(vlm) as (taken, _):
        request = ask(taken, image=png(), stream=True)
        gone = weakref.ref(request.sender)
        request.sender.end()
        del request
        ask(taken).sender.end()  # threads hold their last one until the next
        until(lambda: gone() is None)
    assert not gc.isenabled()
