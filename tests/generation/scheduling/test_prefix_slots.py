"""Whose slot a request gets, what is left in slots by requests that ended badly, and chats in any company."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export import Pipeline
from sts_export.errors import BackendError, RequestError
from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.answers import Cancelled, Event, Piece
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.request import Request
from tests.generation.scheduling.chats import MORE, TURN, Folders, Open, alone, asked, room, token_by_token, turned, what
from tests.support.mixed_requests import SQUARE, TALL, WIDE
from tests.support.pipelines import Spy

PATIENCE = 60.0


# Slots


def test_a_chat_finds_its_slot_among_others(watched: tuple[Pipeline, Spy]) -> None:
    """Four chats, one after the other, keep a slot each: a step may cover four.  The fifth takes the oldest one's."""
    vlm, spy = watched
    chats = [asked(vlm, f"What is it{'?' * count}") for count in range(1, 6)]
    with Scheduler(vlm, slots=8, reuse_prefixes=True) as scheduler:
        caches = scheduler._decoding._caches
        answers = [scheduler.submit(chat).result for chat in chats[:4]]
        for index in (2, 0, 3):
            later = turned(chats[index], [*answers[index].token_ids, *MORE])
            result, rows = scheduler.submit(later).result, len(chats[index].input_ids)
            assert result.cached_tokens == rows + TURN - 1
            assert result.token_ids == token_by_token(vlm, later, rows)[0]
        assert scheduler.submit(chats[4]).result.cached_tokens == 0
    assert [call.slot for call in spy.decoder if call.is_prefill and call.caches is caches] == [0, 1, 2, 3, 2, 0, 3, 1]
    assert max(spy.batches) == 4


class Gate:
    """A backend whose steps wait to be let through, and fail when they are told to."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.error: BackendError | None = None
        self.spoiled: set[int] = set()  # slots whose logits are no numbers
        self._steps = threading.Semaphore(0)
        self.open = True
        self.prompts: list[tuple[int, int]] = []  # slot, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, graph: str, inputs: Any, **options: Any) -> Any:
        if graph == "llm_lower":
            self.prompts.append((options["slot"], inputs["input_ids"].shape[1]))
        return self._backend.run(graph, inputs, **options)

    def decode(self, *args: Any) -> Any:
        assert self.open or self._steps.acquire(timeout=PATIENCE)
        if self.error is not None:
            raise self.error
        logits = self._backend.decode(*args)
        return np.where(np.isin(np.arange(len(logits)), list(self.spoiled))[:, None], np.nan, logits)

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self._steps.release()


@pytest.fixture
def gated(folders: Folders) -> Iterator[tuple[Pipeline, Gate]]:
    with Pipeline(folders("sts"), threads=1) as vlm:
        gate: Any = Gate(vlm._backend)
        vlm._backend = vlm._graphs._backend = gate
        yield vlm, gate


def test_an_answer_that_was_given_up(gated: tuple[Pipeline, Gate]) -> None:
    """Between two steps: the rows that it has are right, and the next turn goes on behind them."""
    vlm, gate = gated
    first = asked(vlm, max_new_tokens=20)
    (whole,) = alone(vlm, [first])
    gate.open = False
    with Scheduler(vlm, slots=1, reuse_prefixes=True) as scheduler:
        ends: queue.SimpleQueue[Event] = queue.SimpleQueue()
        answer = scheduler.submit(first, lambda event: None if isinstance(event, Piece) else ends.put(event))
        gate.let(6)
        while scheduler.load.running == 0:
            time.sleep(0.001)
        scheduler.cancel(answer)
        gate.let(20)
        end = ends.get(timeout=PATIENCE)
        assert isinstance(end, Cancelled)
        tokens = whole.token_ids[: end.tokens]
        gate.open = True
        second = turned(first, [*tokens, *MORE], TURN)
        result = scheduler.submit(second).result
    assert result.cached_tokens == len(first.input_ids) + len(tokens) - 1
    assert result.token_ids == token_by_token(vlm, second, len(first.input_ids))[0]


@pytest.mark.parametrize("error", [BackendError("the GPU is gone"), None], ids=["a step", "a slot"])
def test_after_an_engine_failed(gated: tuple[Pipeline, Gate], error: BackendError | None) -> None:
    """When nothing runs any more there are new caches, in which nothing is."""
    vlm, gate = gated
    first, other = asked(vlm), asked(vlm, images=SQUARE)
    (answer,) = alone(vlm, [first])
    with Scheduler(vlm, slots=3, reuse_prefixes=True) as scheduler:
        assert what(scheduler.submit(first).result) == what(answer)
        gate.error, gate.spoiled = error, {1}
        with pytest.raises(BackendError):
            _ = scheduler.submit(other).result
        gate.error, gate.spoiled = None, set()
        results = [scheduler.submit(one).result for one in (first, other, turned(first, [*answer.token_ids, *MORE]))]
    assert [one.cached_tokens for one in results] == [0, 0, len(first.input_ids) + TURN - 1]
    assert what(results[0]) == what(answer)


def test_a_slot_that_failed_beside_another(gated: tuple[Pipeline, Gate]) -> None:
    """Nothing is taken from it while the other one goes on; what others had left stays."""
    vlm, gate = gated
    long, other, third = asked(vlm, max_new_tokens=24), asked(vlm, images=SQUARE), asked(vlm, images=TALL)
    expected = [alone(vlm, [one])[0] for one in (long, other, third)]
    gate.open = False
    with Scheduler(vlm, slots=4, reuse_prefixes=True) as scheduler:
        running = scheduler.submit(long)
        results = []
        for request, spoiled in ((third, False), (other, True), (other, False), (third, False)):
            gate.spoiled = {2} if spoiled else set()
            answer = scheduler.submit(request)
            gate.let(TURN)
            if spoiled:
                with pytest.raises(BackendError, match="NaN"):
                    _ = answer.result
            else:
                results.append(answer.result)
        gate.let(24)
        assert what(running.result) == what(expected[0])
        assert scheduler._decoding.lost == 1
    assert [one.cached_tokens for one in results] == [0, 0, len(third.input_ids) - 1]
    assert [what(one) for one in results] == [what(expected[index]) for index in (2, 1, 2)]


def test_a_turn_that_leaves_no_token_to_choose(gated: tuple[Pipeline, Gate]) -> None:
    """At its first token its slot is as if it were empty; at its second, the rows so far are right."""
    vlm, _ = gated
    first = asked(vlm)
    (answer,) = alone(vlm, [first])
    second = turned(first, [*answer.token_ids, *MORE])
    (token, *_), _ = token_by_token(vlm, second, len(first.input_ids))
    nothing = LogitsConfig(suppress_tokens=range(384))
    later = LogitsConfig(bad_words_ids=[[token, other] for other in range(384)])
    for logits, cached in ((nothing, 0), (later, len(second.input_ids) - 1)):
        with Scheduler(vlm, slots=1, reuse_prefixes=True) as scheduler:
            assert scheduler.submit(first).result.cached_tokens == 0
            with pytest.raises(RequestError, match="exclude every token"):
                _ = scheduler.submit(replace(second, logits=logits)).result
            result = scheduler.submit(second).result
        assert result.cached_tokens == cached
        came_with = len(first.input_ids) if cached else len(second.input_ids)
        assert result.token_ids == token_by_token(vlm, second, came_with)[0]


# Any number of chats in any order

CLIENTS = [("What is on the table?", WIDE), ("Where is the cat?", [SQUARE, WIDE]), ("Only text.", None), ("Where is it?", WIDE)]
TURNS = st.tuples(
    st.integers(0, len(CLIENTS) - 1),
    st.sampled_from(["next", "next", "next", "again", "anew"]),
    st.lists(st.integers(5, 380), min_size=1, max_size=6),
    st.integers(1, 6),
)


ROUND = st.lists(TURNS, min_size=1, max_size=4, unique_by=lambda turn: turn[0])


@pytest.mark.parametrize("name", ["sts", "none"])
@settings(max_examples=25, deadline=None)
@given(slots=st.integers(1, 3), rounds=st.lists(ROUND, max_size=6))
def test_any_chats(of_method: Open, name: str, slots: int, rounds: Sequence[Sequence[Any]]) -> None:
    """Clients that ask at the same time, turn by turn: whatever was found in the slots, an answer is that of its chat alone,
    with the pictures' rows as one of its turns has them that was computed whole."""
    vlm = of_method(name)
    chats = [_Chat(asked(vlm, prompt, images)) for prompt, images in CLIENTS]
    with Scheduler(vlm, slots=slots, reuse_prefixes=True) as scheduler:
        for turns in rounds:
            requests = [(chats[client], chats[client].turn(kind, words, count)) for client, kind, words, count in turns]
            answers = [(chat, request, scheduler.submit(request)) for chat, request in requests if room(vlm, request) > 6]
            for chat, request, answer in answers:
                chat.check(vlm, request, answer.result, whole=name == "none")


class _Chat:
    """One client's, and which of its prompts were computed whole."""

    def __init__(self, first: Request) -> None:
        self.last = first
        self.answer: list[int] = []
        self.whole: list[list[int]] = []

    def turn(self, kind: str, words: Sequence[int], count: int) -> Request:
        """The next question, the same one again, or another one in its place."""
        if not self.answer or kind == "again":
            return replace(self.last, max_new_tokens=count)
        if kind == "next":
            return turned(self.last, [*self.answer, *words], count)
        return replace(turned(self.last, words, count), input_ids=np.append(self.last.input_ids[:-1], words))

    def check(self, vlm: Pipeline, request: Request, result: GenerationResult, *, whole: bool) -> None:
        ids = request.input_ids.tolist()
        if not result.cached_tokens:
            self.whole.append(ids)
        came_with = {len(ids)} if whole else {len(one) for one in self.whole if ids[: len(one)] == one} or {len(ids)}
        assert result.token_ids in [token_by_token(vlm, request, rows)[0] for rows in sorted(came_with)]
        assert result.cached_tokens < len(ids) == result.prompt_tokens
        self.last, self.answer = request, result.token_ids
