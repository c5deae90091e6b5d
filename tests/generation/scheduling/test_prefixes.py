"""The beginning of a prompt is taken from the cache rows of an earlier one where it is there, and never where it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export import Pipeline
from sts_export.errors import BackendError, RequestError
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest
from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.answers import Answer, Cancelled, Event, Piece
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.request import Request
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.mixed_requests import SQUARE, TALL, WIDE
from tests.support.pipelines import Spy
from tests.support.scheduling.chats import alone, room, token_by_token, turned

PATIENCE = 60.0
TURN = 5  # tokens of an answer
MORE = [40, 77, 12, 90, 301]  # what the user says next
Open = Callable[[str], Pipeline]
METHODS: dict[str, dict[str, Any]] = {
    "sts": {"keep": (20, 8)},
    "before": {"method": "divprune", "budget": "12"},
    "none": {"method": "none"},
    "random": {"method": "random", "budget": "12"},
    "by text": {"stage1": "cdpruner", "stage2": "keep-all", "budget": "12"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    base = tmp_path_factory.mktemp("prefixes")
    checkpoint = write_random_llava(base / "checkpoint", RandomLlava())
    made: dict[str, Any] = {}

    def folder(name: str) -> Any:
        if name not in made:
            capacities = {"max_prompt_tokens": 150, "max_new_tokens": 24, "max_visual_tokens": 72}
            made[name] = export(ExportRequest(str(checkpoint), base / name, **capacities, **METHODS[name])).folder
        return made[name]

    return folder


@pytest.fixture(scope="module")
def of_method(folders: Callable[[str], Any]) -> Open:
    made: dict[str, Pipeline] = {}

    def pipeline(name: str) -> Pipeline:
        if name not in made:
            made[name] = Pipeline(folders(name), threads=1)
        return made[name]

    return pipeline


@pytest.fixture
def spied(folders: Callable[[str], Any]) -> tuple[Pipeline, Spy]:
    pipeline = Pipeline(folders("sts"), threads=1)
    return pipeline, Spy.on(pipeline)


def asked(vlm: Pipeline, prompt: Any = "What is on the table?", images: Any = WIDE, **more: Any) -> Request:
    return vlm.prepare(prompt, images, **{"max_new_tokens": TURN, "ignore_eos": True, **more})


def what(result: GenerationResult) -> Any:
    """That has to be the same of two answers, however much was found."""
    return result.token_ids, result.kept_stage1, result.kept_stage2, result.visual_tokens, result.prompt_tokens


# What is computed


def test_only_the_new_text_is_computed(spied: tuple[Pipeline, Spy]) -> None:
    vlm, spy = spied
    first = asked(vlm)
    with Scheduler(vlm, slots=2, reuse_prefixes=True) as scheduler:
        answer = scheduler.submit(first).result
        assert answer.cached_tokens == 0 and {"vision_encoder", "selector"} <= set(spy.calls)
        spy.calls.clear()
        spy.decoder.clear()
        second = turned(first, [*answer.token_ids, *MORE])
        again = scheduler.submit(second).result
    assert spy.calls[:2] == ["llm_lower", "llm_upper"] and not {"vision_encoder", "selector"} & set(spy.calls)
    rows = len(first.input_ids)
    prompt = spy.decoder[0]
    assert prompt.slot == 0
    assert prompt.inputs["input_ids"].tolist() == [[answer.token_ids[-1], *MORE]]
    assert prompt.inputs["write_index"].tolist() == [rows + TURN - 1]
    assert again.cached_tokens == rows + TURN - 1 and again.prompt_tokens == len(second.input_ids)
    times = again.timings_ms
    assert (times.vision, times.select, times.vision_saved) == (0, 0, 0) and times.prefill_lower > 0
    assert (again.kept_stage1, again.kept_stage2) == (answer.kept_stage1, answer.kept_stage2)
    assert again.token_ids == token_by_token(vlm, second, rows)[0]


def test_it_is_off_unless_asked_for(spied: tuple[Pipeline, Spy]) -> None:
    vlm, spy = spied
    with Scheduler(vlm, slots=1) as scheduler:
        results = [scheduler.submit(asked(vlm)).result for _ in range(2)]
    assert spy.calls.count("vision_encoder") == 2 and [one.cached_tokens for one in results] == [0, 0]


def test_the_same_question_again(of_method: Open) -> None:
    """Its last token is run, whose logits are needed."""
    for name in METHODS:
        request = asked(of_method(name))
        first, again = alone(of_method(name), [request, request])
        assert what(again) == what(first) and again.cached_tokens == len(request.input_ids) - 1


@pytest.mark.parametrize("name", METHODS)
def test_another_question_about_the_picture(of_method: Open, name: str) -> None:
    """The picture's rows serve it where no word had a part in their choice."""
    vlm = of_method(name)
    requests = [asked(vlm), asked(vlm, "What is in the picture of the cat?")]
    _, other = alone(vlm, requests)
    assert what(other) == what(vlm_answer(vlm, requests[1]))
    depends = name not in ("before", "none")
    assert (other.cached_tokens == 0) == depends
    assert depends or other.cached_tokens > other.visual_tokens.stage1


def vlm_answer(vlm: Pipeline, request: Request) -> GenerationResult:
    """Computed from its first row on."""
    return alone(vlm, [request], reuse_prefixes=False)[0]


@pytest.mark.parametrize("name", METHODS)
def test_an_earlier_turn_is_asked_anew(of_method: Open, name: str) -> None:
    """The rows behind the common beginning are given up: those of the last question and of its answer."""
    vlm = of_method(name)
    first = asked(vlm)
    (answer,) = alone(vlm, [first])
    said = [*answer.token_ids, *MORE]
    requests = [first, turned(first, said), turned(first, [*said[:-1], 200, 201]), turned(first, said)]
    results = alone(vlm, requests)
    rows = len(first.input_ids)
    assert [one.cached_tokens for one in results] == [0, rows + TURN - 1, rows + len(said) - 1, rows + len(said) - 1]
    for request, result in zip(requests, results, strict=True):
        assert result.token_ids == token_by_token(vlm, request, rows)[0]
    assert what(results[3]) == what(results[1])


# What it must not be taken for


@pytest.mark.parametrize(
    "change",
    [
        {"images": SQUARE},
        {"images": TALL},
        {"images": [WIDE, SQUARE]},
        {"images": None},
        {"keep": (19, 8)},
        {"keep": (20, 7)},
        {"prompt": "Where is it?"},
    ],
    ids=["another picture", "a taller one", "two", "none", "K", "K'", "another question"],
)
def test_another_picture_budget_or_question_is_computed(of_method: Open, change: dict[str, Any]) -> None:
    vlm = of_method("sts")
    request = asked(vlm, **change)
    _, other = alone(vlm, [asked(vlm), request])
    assert what(other) == what(vlm_answer(vlm, request))
    assert other.cached_tokens == 0 or change == {"images": None}


def test_a_further_picture_is_computed(of_method: Open) -> None:
    """A turn that brings one chooses among all of them."""
    vlm = of_method("none")
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    requests = [asked(vlm, chat[:1], [WIDE]), asked(vlm, chat, [WIDE, SQUARE])]
    _, other = alone(vlm, requests)
    assert other.cached_tokens == 0 and what(other) == what(vlm_answer(vlm, requests[1]))


def test_text_after_a_chat_with_a_picture(of_method: Open) -> None:
    vlm = of_method("sts")
    request = asked(vlm, "What is on the table?", None)
    _, text = alone(vlm, [asked(vlm), request])
    assert text.cached_tokens == 0 and what(text) == what(vlm_answer(vlm, request))


def test_another_seed_draws_again(of_method: Open) -> None:
    """With the same one the first choice stays."""
    vlm = of_method("random")
    seeds = [SamplingConfig(seed=seed) for seed in (1, 1, 2)]
    first, again, other = alone(vlm, [asked(vlm, sampling=seed) for seed in seeds])
    assert again.cached_tokens > 0 and again.kept_stage1 == first.kept_stage1
    assert other.cached_tokens == 0 and other.kept_stage1 != first.kept_stage1


def test_an_answer_that_is_tokenized_anew(of_method: Open) -> None:
    """As a client sends it: text, which ends up as other tokens than were generated."""
    vlm = of_method("sts")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the table?"}]}
    first = asked(vlm, [question], [WIDE])
    (answer,) = alone(vlm, [first])
    chat = [question, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "And in the picture?"}]
    second = asked(vlm, chat, [WIDE])
    rows = len(first.input_ids)
    generated = [*first.input_ids, *answer.token_ids]
    assert second.input_ids[:rows].tolist() == first.input_ids.tolist()
    assert second.input_ids[: len(generated)].tolist() != generated
    _, again = alone(vlm, [first, second])
    assert rows <= again.cached_tokens < rows + TURN
    assert again.token_ids == token_by_token(vlm, second, rows)[0]


def test_the_settings_of_a_turn_are_its_own(of_method: Open) -> None:
    """Penalties look at the whole prompt, and lengths, stop strings and samplers are this request's."""
    vlm = of_method("none")
    first = asked(vlm)
    (answer,) = alone(vlm, [first])
    second = turned(first, [*answer.token_ids, *MORE], 9)
    plain = vlm_answer(vlm, second)
    changes: list[dict[str, Any]] = [
        {"logits": LogitsConfig(repetition_penalty=1.7, no_repeat_ngram_size=2)},
        {"sampling": SamplingConfig(temperature=1.3, seed=4)},
        {"stop": (plain.text[2:4],)},
        {"max_new_tokens": 2},
    ]
    for change in changes:
        request = replace(second, **change)
        _, found = alone(vlm, [first, request])
        assert found.cached_tokens > 0
        wanted = vlm_answer(vlm, request)
        assert (what(found), found.text, found.finish_reason) == (what(wanted), wanted.text, wanted.finish_reason)
        assert found.text != plain.text


@pytest.mark.parametrize("name", ["sts", "none"])
def test_a_chat_to_the_last_row(of_method: Open, name: str) -> None:
    """A slot that is full keeps all but its last row, which idle steps need."""
    vlm = of_method(name)
    first = asked(vlm)
    said = [*MORE, *[7] * (room(vlm, first) - len(MORE) - 24)]
    fill = turned(first, said, 24)
    assert room(vlm, fill) == 24
    with Scheduler(vlm, slots=2, reuse_prefixes=True) as scheduler:
        answers = [scheduler.submit(one) for one in (fill, asked(vlm, images=SQUARE, max_new_tokens=24))]
        whole, _ = (answer.result for answer in answers)  # the second one has steps of its own at the end
        last = turned(fill, whole.token_ids[:-1], 1)
        assert room(vlm, last) == 1
        end, again = scheduler.submit(last).result, scheduler.submit(fill).result
    assert end.cached_tokens == len(last.input_ids) - 1 and end.token_ids == whole.token_ids[-1:]
    assert again.cached_tokens == len(fill.input_ids) - 1 and what(again) == what(whole)


# Slots


def test_a_chat_finds_its_slot_among_others(spied: tuple[Pipeline, Spy]) -> None:
    """Four chats, one after the other, keep a slot each: a step may cover four.  The fifth takes the oldest one's."""
    vlm, spy = spied
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
        self.spoil = False
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
        return np.full_like(logits, np.nan) if self.spoil else logits

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self._steps.release()


@pytest.fixture
def gated(folders: Callable[[str], Any]) -> Iterator[tuple[Pipeline, Gate]]:
    with Pipeline(folders("sts"), threads=1) as vlm:
        gate: Any = Gate(vlm._backend)
        vlm._backend = vlm._graphs._backend = gate
        yield vlm, gate


class Reader:
    """Gives its answer up after so many tokens."""

    def __init__(self, scheduler: Scheduler, after: int) -> None:
        self._scheduler, self._after = scheduler, after
        self.answer: Answer | None = None
        self.end: Event | None = None
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Piece):
            self.end = event
            self.over.set()
        elif event.tokens >= self._after and self.answer is not None:
            self._scheduler.cancel(self.answer)


def test_an_answer_that_was_given_up(gated: tuple[Pipeline, Gate]) -> None:
    """Between two steps: the rows that it has are right, and the next turn goes on behind them."""
    vlm, gate = gated
    first = asked(vlm, max_new_tokens=20)
    (whole,) = alone(vlm, [first])
    gate.open = False
    with Scheduler(vlm, slots=1, reuse_prefixes=True) as scheduler:
        reader = Reader(scheduler, 99)
        answer = scheduler.submit(first, reader)
        gate.let(6)
        while scheduler.load.running == 0:
            threading.Event().wait(0.001)
        scheduler.cancel(answer)
        gate.let(20)
        assert reader.over.wait(PATIENCE) and isinstance(reader.end, Cancelled)
        tokens = whole.token_ids[: reader.end.tokens]
        gate.open = True
        second = turned(first, [*tokens, *MORE], TURN)
        result = scheduler.submit(second).result
    assert result.cached_tokens == len(first.input_ids) + len(tokens) - 1
    assert result.token_ids == token_by_token(vlm, second, len(first.input_ids))[0]


@pytest.mark.parametrize("how", ["error", "spoil"])
def test_nothing_is_taken_from_an_engine_that_failed(gated: tuple[Pipeline, Gate], how: str) -> None:
    """Neither of the request that failed nor, where the whole step did, of those that were over."""
    vlm, gate = gated
    first, other = asked(vlm), asked(vlm, images=SQUARE)
    (answer,) = alone(vlm, [first])
    with Scheduler(vlm, slots=3, reuse_prefixes=True) as scheduler:
        assert what(scheduler.submit(first).result) == what(answer)
        setattr(gate, how, BackendError("the GPU is gone") if how == "error" else True)
        with pytest.raises(BackendError):
            _ = scheduler.submit(other).result
        gate.error, gate.spoil = None, False
        results = [scheduler.submit(one).result for one in (first, other, turned(first, [*answer.token_ids, *MORE]))]
    assert [one.cached_tokens for one in results] == [0, 0, len(first.input_ids) + TURN - 1]
    assert what(results[0]) == what(answer)


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
