"""Requests of many readers in one scheduler: the answers of the requests alone, whoever comes, leaves or fails when."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.errors import BackendError, BusyError, RequestError
from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.answers import Cancelled, Event, Failed, Finished, Piece
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.request import Request
from tests.support.mixed_requests import FAMILIES, NEW, REQUESTS, Opened, alone, without_times
from tests.support.scheduling.gates import PATIENCE, Gate, until


def request_of(vlm: Pipeline, index: int, new_tokens: int = NEW, **more: Any) -> Request:
    prompt, images = REQUESTS[index]
    return vlm.prepare(prompt, images, max_new_tokens=new_tokens, **{"ignore_eos": True, **more})


@pytest.fixture(scope="module")
def single(opened: Opened) -> list[GenerationResult]:
    return alone(opened("llava"), ignore_eos=True)


class Reader:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def end(self) -> Event | None:
        return next((event for event in self.events if not isinstance(event, Piece)), None)

    def wait(self) -> Event:
        until(lambda: self.end is not None)
        assert self.end is not None and self.events.index(self.end) == len(self.events) - 1
        return self.end


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_answers_are_those_of_the_requests_alone(opened: Opened, name: str, slots: int) -> None:
    vlm = opened(name)
    expected = alone(vlm, ignore_eos=True)
    with Scheduler(vlm, slots=slots) as scheduler:
        answers = [scheduler.submit(request_of(vlm, index)) for index in range(len(REQUESTS))]
        for answer, wanted in zip(answers, expected, strict=True):
            assert "".join(answer) == wanted.text
            assert without_times(answer.result) == without_times(wanted)


def test_many_readers_at_once(opened: Opened, single: list[GenerationResult]) -> None:
    """Each of eight threads asks its question again and again, and gives every third answer up."""
    vlm = opened("llava")
    wrong: list[Any] = []

    def ask(index: int) -> None:
        for turn in range(6):
            answer = scheduler.submit(request_of(vlm, index))
            if turn % 3 == 2:
                scheduler.cancel(answer)
                try:
                    text = answer.result.text
                except BusyError:
                    continue
            else:
                text = "".join(answer)
            if text != single[index].text:
                wrong.append((index, text))

    with Scheduler(vlm, slots=3) as scheduler:
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(REQUESTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        until(lambda: scheduler.load.running == scheduler.load.waiting == 0)
        assert scheduler._decoding.lost == 0
    assert wrong == []


def test_one_prefill_between_two_steps(gated: tuple[Pipeline, Gate]) -> None:
    """However many come at once, an answer under way goes on after each of their prompts; the first to come is the first."""
    vlm, gate = gated
    with Scheduler(vlm, slots=4) as scheduler:
        first = scheduler.submit(request_of(vlm, 0))
        until(lambda: scheduler.load.running == 1)
        readers = [Reader() for _ in range(3)]
        told: list[int] = []  # who got an event, in the order of the scheduler's thread
        for index, reader in enumerate(readers, start=1):

            def deliver(event: Event, index: int = index, reader: Reader = reader) -> None:
                told.append(index)
                reader(event)

            scheduler.submit(request_of(vlm, index, 2), deliver)
        gate.open()
        assert len(first.result.token_ids) == NEW
        ends = [reader.wait() for reader in readers]
    assert gate.calls[:7] == ["prefill", "step"] + ["prefill", "step"] * 2 + ["prefill"]
    assert all(isinstance(end, Finished) and end.queue_ms > 0 for end in ends)
    assert list(dict.fromkeys(told)) == [1, 2, 3]


def test_a_slot_that_is_given_up_is_the_next_ones(gated: tuple[Pipeline, Gate], single: list[GenerationResult]) -> None:
    vlm, gate = gated
    with Scheduler(vlm, slots=1) as scheduler:
        reader, other = Reader(), Reader()
        given_up = scheduler.submit(request_of(vlm, 0), reader)
        waiting = scheduler.submit(request_of(vlm, 1))
        scheduler.submit(request_of(vlm, 2), other)
        until(lambda: scheduler.load.running == 1)
        scheduler.cancel(waiting)  # waits: it is over at once
        with pytest.raises(BusyError, match="given up"):
            _ = waiting.result
        scheduler.cancel(given_up)
        gate.let(1)
        assert reader.wait() == Cancelled(2)
        gate.open()
        end = other.wait()
        scheduler.cancel(given_up)  # again: nothing
        assert isinstance(end, Finished) and end.result.token_ids == single[2].token_ids
        assert gate.calls[:3] == ["prefill", "step", "prefill"]


def test_a_full_queue_refuses(gated: tuple[Pipeline, Gate]) -> None:
    vlm, gate = gated
    with Scheduler(vlm, slots=1, most_waiting=2) as scheduler:
        answers = [scheduler.submit(request_of(vlm, 0))]
        until(lambda: scheduler.load.running == 1)
        answers += [scheduler.submit(request_of(vlm, index, 2)) for index in (1, 2)]
        assert (scheduler.load.running, scheduler.load.waiting, scheduler.load.slots) == (1, 2, 1)
        with pytest.raises(BusyError, match="2 requests are waiting already; send it again later"):
            scheduler.submit(request_of(vlm, 3))
        gate.open()
        assert [len(answer.result.token_ids) for answer in answers] == [NEW, 2, 2]


def test_who_waits_too_long_is_told(gated: tuple[Pipeline, Gate]) -> None:
    """The first must not be late itself, on a busy machine either."""
    vlm, gate = gated
    with Scheduler(vlm, slots=1, longest_wait=0.5) as scheduler:
        first = scheduler.submit(request_of(vlm, 0))
        until(lambda: scheduler.load.running == 1)
        late = scheduler.submit(request_of(vlm, 1))
        time.sleep(0.6)
        gate.open()
        with pytest.raises(BusyError, match=r"no slot was free for 0.5 s"):
            _ = late.result
        assert len(first.result.token_ids) == NEW


def test_closing_answers_what_was_submitted(opened: Opened, single: list[GenerationResult]) -> None:
    vlm = opened("llava")
    scheduler = Scheduler(vlm, slots=2)
    answers = [scheduler.submit(request_of(vlm, index)) for index in range(4)]
    scheduler.close()
    assert [answer.result.text for answer in answers] == [one.text for one in single[:4]]
    with pytest.raises(BusyError, match="closed"):
        scheduler.submit(request_of(vlm, 0))
    scheduler.close()


@pytest.mark.parametrize("drain", [False, True])
def test_closing_gives_up_what_is_left(gated: tuple[Pipeline, Gate], drain: bool) -> None:
    """At once, or when the time for it has passed."""
    vlm, gate = gated
    scheduler = Scheduler(vlm, slots=1)
    readers = [Reader(), Reader()]
    for index, reader in enumerate(readers):
        scheduler.submit(request_of(vlm, index), reader)
    until(lambda: scheduler.load.running == 1)
    closing = threading.Thread(target=scheduler.close, kwargs={"drain": drain, "timeout": 0.05})
    closing.start()
    until(lambda: scheduler._closing == "now")
    gate.let(1)  # the step that was under way
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert [reader.end for reader in readers] == [Cancelled(2), Cancelled(0)]


def test_a_request_that_fails_hurts_no_other(gated: tuple[Pipeline, Gate], single: list[GenerationResult]) -> None:
    """At its first token, and at its second."""
    vlm, gate = gated
    gate.open()
    nothing = LogitsConfig(suppress_tokens=range(384))
    later = LogitsConfig(bad_words_ids=[[single[1].token_ids[0], token] for token in range(384)])
    with Scheduler(vlm, slots=3) as scheduler:
        wrong = [scheduler.submit(request_of(vlm, 1, logits=logits)) for logits in (nothing, later)]
        right = [scheduler.submit(request_of(vlm, index)) for index in (0, 2)]
        for answer in wrong:
            with pytest.raises(RequestError, match="exclude every token"):
                _ = answer.result
        assert [answer.result.text for answer in right] == [single[0].text, single[2].text]


def test_after_an_engine_failed_all_goes_on(gated: tuple[Pipeline, Gate], single: list[GenerationResult]) -> None:
    """Requests that ran fail; those that waited are answered, in new caches."""
    vlm, gate = gated
    with Scheduler(vlm, slots=2) as scheduler:
        running = [Reader(), Reader()]
        for index, reader in enumerate(running):
            scheduler.submit(request_of(vlm, index), reader)
        gate.let(1)
        until(lambda: scheduler.load.running == 2)
        waiting = [scheduler.submit(request_of(vlm, index)) for index in (2, 4)]
        gate.error = BackendError("the GPU is gone")
        gate.let(1)
        for reader in running:
            end = reader.wait()
            assert isinstance(end, Failed) and str(end.error) == "the GPU is gone"
        gate.error = None
        gate.open()
        assert [answer.result.text for answer in waiting] == [single[2].text, single[4].text]
        assert scheduler._decoding.lost == 0


class Panic(BaseException):
    """As those of extensions in Rust: no Exception."""


@pytest.mark.parametrize("error", [MemoryError("no more"), Panic("no more")])
@pytest.mark.parametrize("where", ["add", "step"])
def test_nobody_waits_for_a_scheduler_that_failed(
    gated: tuple[Pipeline, Gate], monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    """By a mistake of its own, or without memory: every reader gets an error, and no more requests are taken."""
    vlm, gate = gated

    def fail(*_: Any) -> Any:
        raise error

    with Scheduler(vlm, slots=1) as scheduler:
        running = scheduler.submit(request_of(vlm, 0))
        until(lambda: scheduler.load.running == 1)
        answers = [running, scheduler.submit(request_of(vlm, 1)), scheduler.submit(request_of(vlm, 2))]
        monkeypatch.setattr(scheduler._decoding, where, fail)
        gate.open()
        if where == "add":
            assert len(answers.pop(0).result.token_ids) == NEW
        for answer in answers:
            with pytest.raises(BackendError, match=f"{type(error).__name__}: no more"):
                _ = answer.result
        until(lambda: not scheduler.is_open)
        with pytest.raises(BusyError, match="closed"):
            scheduler.submit(request_of(vlm, 3))


@pytest.mark.parametrize("error", [RuntimeError("the loop is closed"), Panic("the loop is closed")])
def test_a_reader_that_fails_hurts_no_other(opened: Opened, single: list[GenerationResult], error: BaseException) -> None:
    vlm = opened("llava")

    def broken(_: Event) -> None:
        raise error

    with Scheduler(vlm, slots=2) as scheduler:
        scheduler.submit(request_of(vlm, 0), broken)
        assert scheduler.submit(request_of(vlm, 2)).result.text == single[2].text


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"most_waiting": 0}, {"longest_wait": 0}, {"longest_wait": float("nan")}])
def test_wrong_numbers(opened: Opened, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Scheduler(opened("llava"), **wrong)
