"""Slots: requests begin and end beside others, in slots that others have left, and are answered as they would be alone."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export import Pipeline
from sts_export.errors import BackendError, RequestError
from sts_export.generation.decoding import Decoding
from sts_export.generation.result import GenerationResult
from sts_export.generation.slots import Slot
from sts_export.reference import ReferenceModel, generate
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.request import Request
from tests.support.mixed_requests import FAMILIES, NEW, QUANTIZED, REQUESTS, Opened, alone, without_times
from tests.support.pipelines import Spy

torch.set_num_threads(1)
ALL = [*FAMILIES, *QUANTIZED]
STALE = 1e4  # of rows that no request wrote


def request_of(vlm: Pipeline, index: int, new_tokens: int = NEW, **more: Any) -> Request:
    prompt, images = REQUESTS[index]
    return vlm.prepare(prompt, images, max_new_tokens=new_tokens, **{"ignore_eos": True, **more})


def decoding_of(vlm: Pipeline, slots: int) -> Decoding:
    """On caches whose rows hold what an earlier request might have left."""
    caches: Any = vlm._backend.new_caches(slots)
    for part in caches.parts.values():
        for buffer in part.buffers.values():
            buffer.update_inplace(np.full(buffer.shape(), STALE, np.float32))
    return Decoding(vlm._graphs, vlm.manifest, vlm.tokenizer, caches)


def finish(decoding: Decoding) -> None:
    while decoding.active:
        decoding.step()


def check(decoding: Decoding, slots: Sequence[Slot], expected: Sequence[GenerationResult]) -> None:
    for index, (slot, wanted) in enumerate(zip(slots, expected, strict=True)):
        found, theirs = without_times(decoding.result(slot)), without_times(wanted)
        assert {**found, "backend": theirs["backend"]} == theirs, index


@pytest.fixture(scope="module")
def watched(opened: Opened) -> tuple[Pipeline, Spy]:
    """A pipeline of LLaVA whose backend is watched."""
    vlm = Pipeline(opened("llava").bundle.folder, threads=1)
    return vlm, Spy.on(vlm)


@pytest.fixture(scope="module")
def single(watched: tuple[Pipeline, Spy]) -> list[GenerationResult]:
    return alone(watched[0], ignore_eos=True)


@pytest.mark.parametrize("name", ALL)
def test_a_request_that_comes_while_others_decode(opened: Opened, name: str) -> None:
    """Each comes when those before it have a few tokens more: with and without pictures, of any size."""
    vlm = opened(name)
    expected = alone(vlm, ignore_eos=True)
    decoding = decoding_of(vlm, len(REQUESTS))
    slots = []
    for index in range(len(REQUESTS)):
        slots.append(decoding.add(request_of(vlm, index)))
        decoding.step()
    assert [len(slot.tokens) for slot in slots] == [*range(9, 1, -1)]
    finish(decoding)
    check(decoding, slots, expected)


@pytest.mark.parametrize("name", ALL)
def test_slots_are_used_again(opened: Opened, name: str) -> None:
    """Three slots for eight requests of several lengths, forwards and backwards: whoever ends makes room for the next."""
    vlm = opened(name)
    lengths = [NEW, 3, 1, 7, 2, 5, 4, 6]
    for order in (range(8), range(7, -1, -1)):
        decoding, slots, used = decoding_of(vlm, 3), {}, []
        for index in order:
            while not decoding.has_room:
                decoding.step()
            slots[index] = decoding.add(request_of(vlm, index, lengths[index]))
            used.append(slots[index].number)
        finish(decoding)
        assert sorted(set(used)) == [0, 1, 2] and max(map(used.count, used)) > 2
        expected = [vlm.generate(*REQUESTS[index], max_new_tokens=lengths[index], ignore_eos=True) for index in range(8)]
        check(decoding, [slots[index] for index in range(8)], expected)


def test_results_come_as_requests_end(watched: tuple[Pipeline, Spy], single: list[GenerationResult]) -> None:
    """``step`` says whose token is new, and a slot that is over can be read after its place is taken."""
    vlm, _ = watched
    decoding = decoding_of(vlm, 2)
    short, long = decoding.add(request_of(vlm, 0, 2)), decoding.add(request_of(vlm, 2, 4))
    assert (short.number, long.number, decoding.has_room) == (0, 1, False)
    assert not short.is_over and short.piece == single[0].text[: len(short.piece)]
    assert decoding.step() == [short, long]
    assert short.reason == "length" and decoding.active == [long] and decoding.has_room
    third = decoding.add(request_of(vlm, 4, 1))  # over at its first token
    assert (third.number, third.reason, decoding.active) == (0, "length", [long])
    assert decoding.step() == [long]
    assert decoding.step() == [long] and long.is_over
    assert decoding.step() == [] and decoding.active == []
    for slot, index, count in ((short, 0, 2), (long, 2, 4), (third, 4, 1)):
        result = decoding.result(slot)
        assert result.token_ids == single[index].token_ids[:count] and result.kept_stage2 == single[index].kept_stage2
        assert (result.timings_ms.decode_per_token is None) == (count == 1)


@pytest.mark.parametrize("name", ALL)
def test_kept_tokens_are_told_with_the_first_token(opened: Opened, name: str) -> None:
    """Those of the result, once, and nothing of the answer depends on somebody asking."""
    vlm = opened(name)
    for index in range(len(REQUESTS)):
        told: list[Any] = []
        asked = replace(request_of(vlm, index, 3), on_kept=lambda *kept, told=told: told.append(kept))
        decoding = decoding_of(vlm, 1)
        slot = decoding.add(asked)
        assert len(told) == 1 and len(slot.tokens) == 1
        finish(decoding)
        wanted = vlm.generate(*REQUESTS[index], max_new_tokens=3, ignore_eos=True)
        assert told == [(wanted.kept_stage1, wanted.kept_stage2)] and slot.tokens == wanted.token_ids


def test_a_step_computes_up_to_the_highest_slot_in_use(watched: tuple[Pipeline, Spy]) -> None:
    """A slot between that nobody has takes a token of no meaning to its first row, which the next prompt overwrites."""
    vlm, spy = watched
    decoding = decoding_of(vlm, 4)
    slots = [decoding.add(request_of(vlm, index)) for index in range(3)]
    spy.decoder.clear()
    decoding.step()
    decoding.free(slots[1])
    decoding.step()
    idle = spy.decoder[-1].inputs
    assert [idle[name][1].tolist() for name in ("input_ids", "position_ids", "write_index")] == [[0], [0], 0]
    decoding.free(slots[2])
    decoding.step()
    assert spy.batches == [3, 3, 1]
    assert decoding.add(request_of(vlm, 4)).number == 1
    decoding.free(slots[2])  # again: nothing
    decoding.free(slots[1])  # whose place is another's now
    assert [slot.number for slot in decoding.active] == [0, 1]
    assert slots[1].tokens and not slots[1].is_over


# Any order of beginnings and ends

COUNT = 5


@pytest.fixture(scope="module")
def reference(opened: Opened, watched: tuple[Pipeline, Spy]) -> list[tuple[list[int], list[int]]]:
    """Tokens and kept visual tokens of the first requests, by plain torch."""
    vlm, _ = watched
    model = ReferenceModel.open(vlm.manifest.source.folder)
    found = []
    for prompt, images in REQUESTS[:COUNT]:
        sources = images if isinstance(images, list) else [] if images is None else [images]
        answer = generate(model, prompt, sources, vlm.manifest.pruning, NEW, ignore_eos=True)
        found.append((answer.token_ids, answer.kept_stage2))
    assert len({tuple(tokens) for tokens, _ in found}) == COUNT
    return found


STEP = st.just(("step", 0, 0))
ADD = st.tuples(st.just("add"), st.integers(0, COUNT - 1), st.integers(1, NEW))
FREE = st.tuples(st.just("free"), st.integers(0, 3), st.just(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.lists(STEP | STEP | ADD | ADD | FREE, max_size=40))
def test_any_schedule(
    watched: tuple[Pipeline, Spy],
    reference: list[tuple[list[int], list[int]]],
    slots: int,
    schedule: list[tuple[str, int, int]],
) -> None:
    """Whatever begins, ends and is dropped when: every answer is that of the request alone, up to where it came."""
    vlm, spy = watched
    decoding = decoding_of(vlm, slots)
    asked: list[tuple[Slot, int]] = []  # with the number of its request
    dropped: list[Slot] = []
    for what, number, count in [*schedule, *[("step", 0, 0)] * NEW]:
        active = {slot.number: slot for slot in decoding.active}
        if what == "add" and decoding.has_room:
            slot = decoding.add(request_of(vlm, number, count))
            assert slot.number == min(set(range(slots)) - active.keys())
            asked.append((slot, number))
        elif what == "free" and number in active:
            decoding.free(active[number])
            dropped.append(active[number])
        elif what == "step":
            spy.decoder.clear()
            assert decoding.step() == list(active.values())
            assert spy.batches == ([max(active) + 1] if active else [])
    assert not decoding.active
    for slot, number in asked:
        tokens, kept = reference[number]
        assert slot.tokens == tokens[: len(slot.tokens)]
        assert slot.error is None and (slot in dropped) == (slot.reason is None)
        if slot not in dropped:
            result = decoding.result(slot)
            assert result.token_ids == tokens[: slot.request.max_new_tokens] and result.kept_stage2 == kept


# Failures


def test_settings_that_leave_no_first_token(watched: tuple[Pipeline, Spy], single: list[GenerationResult]) -> None:
    vlm, _ = watched
    decoding = decoding_of(vlm, 2)
    slot = decoding.add(request_of(vlm, 0))
    with pytest.raises(RequestError, match="exclude every token"):
        decoding.add(request_of(vlm, 1, logits=LogitsConfig(suppress_tokens=range(384))))
    assert decoding.active == [slot] and decoding.has_room
    other = decoding.add(request_of(vlm, 2))
    finish(decoding)
    check(decoding, [slot, other], [single[0], single[2]])


def test_settings_that_leave_no_second_token(watched: tuple[Pipeline, Spy], single: list[GenerationResult]) -> None:
    """The request fails alone, and its slot is another's next."""
    vlm, _ = watched
    decoding = decoding_of(vlm, 3)
    first = single[1].token_ids[0]
    nothing = LogitsConfig(bad_words_ids=[[first, token] for token in range(384)])
    slots = [
        decoding.add(request_of(vlm, 0)),
        decoding.add(request_of(vlm, 1, logits=nothing)),
        decoding.add(request_of(vlm, 2)),
    ]
    assert decoding.step() == slots
    failed = slots.pop(1)
    assert isinstance(failed.error, RequestError) and "exclude every token" in str(failed.error)
    assert failed.is_over and failed.reason is None and failed.tokens == [first]
    assert decoding.active == slots
    slots.append(decoding.add(request_of(vlm, 4)))
    assert slots[-1].number == failed.number
    finish(decoding)
    check(decoding, slots, [single[index] for index in (0, 2, 4)])


def test_an_engine_that_fails_at_a_prompt(
    opened: Opened, single: list[GenerationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That request fails alone; its slot, whose rows may be NaN, is nobody's any more."""
    vlm = Pipeline(opened("llava").bundle.folder, threads=1)
    decoding = decoding_of(vlm, 3)
    slots = [decoding.add(request_of(vlm, 0))]
    decoding.step()

    def fail(*_: Any, **__: Any) -> Any:
        raise BackendError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(vlm._backend, "run", fail)
        with pytest.raises(BackendError, match="out of memory"):
            decoding.add(request_of(vlm, 1))
    assert decoding.active == slots and decoding.has_room
    slots.append(decoding.add(request_of(vlm, 2)))
    assert slots[-1].number == 2 and not decoding.has_room
    finish(decoding)
    check(decoding, slots, [single[0], single[2]])
    assert decoding.add(request_of(vlm, 1)).number == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_of_one_slot_that_are_no_numbers(
    opened: Opened, single: list[GenerationResult], monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    vlm = Pipeline(opened("llava").bundle.folder, threads=1)
    decoding = decoding_of(vlm, 3)
    slots = [decoding.add(request_of(vlm, index)) for index in range(3)]
    decode = vlm._backend.decode

    def broken(*args: Any) -> Any:
        logits = decode(*args).copy()
        logits[1, 7] = bad
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(vlm._backend, "decode", broken)
        assert decoding.step() == slots
    failed = slots.pop(1)
    assert isinstance(failed.error, BackendError) and "NaN or infinity" in str(failed.error)
    assert decoding.active == slots and not decoding.has_room
    decoding.free(failed)  # does not bring its slot back
    assert not decoding.has_room
    finish(decoding)
    check(decoding, slots, [single[0], single[2]])


def test_an_engine_that_fails_in_a_step(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it all requests have failed."""
    vlm = Pipeline(opened("llava").bundle.folder, threads=1)
    decoding = decoding_of(vlm, 3)
    slots = [decoding.add(request_of(vlm, index)) for index in range(2)]

    def fail(*_: Any) -> Any:
        raise BackendError("the GPU is gone")

    monkeypatch.setattr(vlm._backend, "decode", fail)
    with pytest.raises(BackendError, match="the GPU is gone"):
        decoding.step()
    assert [str(slot.error) for slot in slots] == ["the GPU is gone"] * 2 and not decoding.active
    assert decoding.add(request_of(vlm, 2)).number == 2 and not decoding.has_room


def test_failures_leave_no_circles(
    opened: Opened, single: list[GenerationResult], without_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback kept beside a slot would hold it, and tensors on a GPU, until the collector comes."""
    vlm = Pipeline(opened("llava").bundle.folder, threads=1)
    nothing = LogitsConfig(bad_words_ids=[[single[0].token_ids[0], token] for token in range(384)])
    new_caches, caches = vlm._backend.new_caches, []

    def watched_caches(slots: int) -> Any:
        made = new_caches(slots)
        caches.append(weakref.ref(made))
        return made

    def fail(*_: Any) -> Any:
        raise BackendError("the GPU is gone")

    monkeypatch.setattr(vlm._backend, "new_caches", watched_caches)
    prompts, images = [REQUESTS[0][0]] * 2, [REQUESTS[0][1]] * 2
    decoding = decoding_of(vlm, 2)
    slots = [decoding.add(request_of(vlm, 0, logits=nothing)), decoding.add(request_of(vlm, 1))]
    decoding.step()
    with contextlib.suppress(RequestError):
        vlm.generate(prompts, images, logits=nothing, ignore_eos=True)
    vlm._free_caches.clear()
    monkeypatch.setattr(vlm._backend, "decode", fail)
    with contextlib.suppress(BackendError):
        decoding.step()
    assert [type(slot.error) for slot in slots] == [RequestError, BackendError]
    with contextlib.suppress(BackendError):
        vlm.generate(prompts, images, ignore_eos=True)
    left: list[Any] = [*(weakref.ref(slot) for slot in slots), *caches]
    del slots, decoding
    assert len(caches) == 3 and [one() for one in left] == [None] * 5


def test_a_list_with_a_request_that_fails(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipeline.generate raises, and buffers are used again unless the engine failed."""
    vlm = Pipeline(opened("llava").bundle.folder, threads=1)
    first = vlm.generate("What?", max_new_tokens=1, ignore_eos=True).token_ids[0]
    vlm._free_caches.clear()
    nothing = LogitsConfig(bad_words_ids=[[first, token] for token in range(384)])
    with pytest.raises(RequestError, match="exclude every token"):
        vlm.generate(["Where is it?", "What?"], logits=nothing, ignore_eos=True)
    assert len(vlm._free_caches) == 1

    def broken(*_: Any) -> Any:
        return np.full((2, 384), np.nan, np.float32)

    monkeypatch.setattr(vlm._backend, "decode", broken)
    with pytest.raises(BackendError, match="NaN or infinity"):
        vlm.generate(["Where is it?", "What?"], ignore_eos=True)
    assert len(vlm._free_caches) == 0

    def half_broken(*_: Any) -> Any:
        return np.stack([np.zeros(384, np.float32), np.full(384, np.nan, np.float32)])

    # One step brings both: a request that excludes every token, and behind it an engine whose rows may be NaN.
    monkeypatch.setattr(vlm._backend, "decode", half_broken)
    with pytest.raises(BackendError, match="NaN or infinity"):
        vlm.generate(["What?", "Where is it?"], logits=nothing, ignore_eos=True)
    assert len(vlm._free_caches) == 0
