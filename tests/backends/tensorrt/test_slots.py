"""Requests that share caches on fakes of TensorRT, in all families: each is answered as it would be alone.

The single answers are the PyTorch reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt.caches import TensorRtCaches
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import BackendError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.decoding import Decoding
from sts_export.pruning.config import PruningConfig
from sts_export.reference import ReferenceModel, generate
from sts_export.requests.preprocessor import Inputs
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_prompt,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.support.parity import pictures
from tests.support.slots import Slots
from tests.support.tensorrt_backend import FLAVOURS, NEW, OLD, Flavour, Opened, check_nothing_left, open_on, token_feeds

SLOTS, TOKENS = 8, 10
SIZES = [(84, 84), (300, 40), (200, 150), (640, 480)]
Make = Callable[[Path], Path]
CHECKPOINTS: dict[str, Make] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(seed=70)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(seed=71, decoder="vicuna", kv_heads=1)),
    "qwen2_5_vl": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(seed=72, max_pixels=120 * 784)),
}
Ask = tuple[list[dict[str, Any]], list[Any]]


def asked(number: int) -> Ask:
    """A prompt of its own length with none, one or two pictures of its own sizes."""
    sizes = [SIZES[(number + place) % len(SIZES)] for place in range((1, 2, 0, 1)[number % 4])]
    text = {"type": "text", "text": random_prompt(number)}
    content = [*({"type": "image"} for _ in sizes), text]
    return [{"role": "user", "content": content}], pictures(number, sizes)


class Family:
    """One checkpoint, its bundle, and the reference's answers, each made once."""

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        self.bundle, self._model = bundle, ReferenceModel.open(checkpoint)
        self._answers: dict[int, Any] = {}

    @property
    def pruning(self) -> PruningConfig:
        return self.bundle.manifest.pruning

    def answer(self, number: int) -> Any:
        if number not in self._answers:
            prompt, images = asked(number)
            self._answers[number] = generate(self._model, prompt, images, self.pruning, TOKENS, ignore_eos=True)
        return self._answers[number]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    base = tmp_path_factory.mktemp("slots")
    checkpoint = CHECKPOINTS[request.param](base / "checkpoint")
    # Slots of a multiple of 256 bytes in all families.
    room: dict[str, Any] = {
        "max_prompt_tokens": 101 if request.param == "llava" else 100,
        "max_new_tokens": TOKENS + 2,
        "max_visual_tokens": 900,
    }
    done = export(ExportRequest(str(checkpoint), output=base / "bundle", budget="20%", prune_layer=2, **room))
    return Family(checkpoint, open_bundle(done.folder))


@pytest.fixture(params=FLAVOURS, ids=str)
def opened(family: Family, request: pytest.FixtureRequest) -> Iterator[Opened]:
    made = open_on(family.bundle.folder, request.param, max_batch=SLOTS)
    yield made
    made.backend.close()
    check_nothing_left(made.device)


def begin(slots: Slots, slot: int, number: int) -> None:
    prompt, images = asked(number)
    slots.add(slot, slots.inputs(prompt, images))


def test_a_batch_of_eight_is_eight_answers(opened: Opened, family: Family) -> None:
    """With other pictures, numbers of visual tokens and lengths, in one run of the engines a token."""
    slots = Slots(opened.backend, family.bundle, SLOTS)
    for slot in range(SLOTS):
        begin(slots, slot, slot)
    for _ in range(TOKENS - 1):
        slots.step()
    assert len({tuple(one.rows) for one in slots.running.values()}) > 4
    for slot, one in slots.running.items():
        theirs = family.answer(slot)
        assert (one.tokens, one.kept) == (theirs.token_ids, theirs.kept_stage1), slot
    assert opened.runs("llm_lower") == opened.runs("llm_upper") == {0: SLOTS, 1: TOKENS - 1}
    assert opened.device.calls["cudaGraphLaunch"] > 0


def test_a_prompt_is_written_where_it_belongs(opened: Opened, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a copy of a slot, in place or not."""
    slots = Slots(opened.backend, family.bundle, 3)
    prompt, images = asked(2)
    assert images == []
    monkeypatch.setattr(Cuda, "on_device", None)
    for slot in range(3):
        slots.add(slot, slots.inputs(prompt))


def test_requests_come_and_go(opened: Opened, family: Family) -> None:
    """Requests begin while others decode, in slots that others have left, with fewer and with more slots in use."""
    slots = Slots(opened.backend, family.bundle, 3)
    ends: dict[int, list[int]] = {}
    waiting = [
        (0, 0, 0),
        (1, 1, 1),
        (3, 2, 2),
        (13, 0, 3),
        (14, 2, 4),
        (20, 1, 5),
        (27, 0, 6),
        (27, 2, 7),
    ]  # step, slot, number
    numbers: dict[int, int] = {}
    step = used = 0
    while waiting or slots.running:
        while waiting and waiting[0][0] <= step and waiting[0][1] not in slots.running:
            _, slot, number = waiting.pop(0)
            begin(slots, slot, number)
            numbers[slot] = number
        if slots.running:
            used |= 1 << max(slots.running)
            slots.step()
        for slot in [slot for slot, one in slots.running.items() if len(one.tokens) == TOKENS]:
            ends[numbers[slot]] = slots.running.pop(slot).tokens
        step += 1
    assert used == 0b111
    assert ends == {number: family.answer(number).token_ids for number in range(8)}


# The same through a pipeline


def test_a_pipelines_batch_is_one_batch(opened: Opened, family: Family) -> None:
    """Of eight requests that begin together."""
    asks = [asked(number) for number in range(SLOTS)]
    results = opened.pipeline().generate(
        [prompt for prompt, _ in asks], [images for _, images in asks], max_new_tokens=TOKENS, ignore_eos=True
    )
    for number, ours in enumerate(results):
        theirs = family.answer(number)
        assert (ours.token_ids, ours.kept_stage1, ours.kept_stage2) == (
            theirs.token_ids,
            theirs.kept_stage1,
            theirs.kept_stage2,
        ), number
    assert opened.runs("llm_lower") == opened.runs("llm_upper") == {0: SLOTS, 1: TOKENS - 1}


def test_a_request_joins_others_that_decode(opened: Opened, family: Family) -> None:
    """Each with its own limit, in three slots; whoever waits takes the slot that is left."""
    pipeline = opened.pipeline()
    requests = [
        pipeline.prepare(*asked(number), max_new_tokens=TOKENS - 2 * (number % 4), ignore_eos=True) for number in range(SLOTS)
    ]
    decoding = Decoding(pipeline._graphs, pipeline.manifest, pipeline.tokenizer, opened.backend.new_caches(3))
    ends: dict[int, list[int]] = {}
    running: dict[Any, int] = {}
    for number, request in enumerate(requests):
        while not decoding.has_room:
            for slot in decoding.step():
                if slot.is_over:
                    ends[running.pop(slot)] = decoding.result(slot).token_ids
        running[decoding.add(request)] = number
        decoding.step()
    while decoding.active:
        decoding.step()
    ends |= {number: decoding.result(slot).token_ids for slot, number in running.items()}
    assert ends == {number: family.answer(number).token_ids[: TOKENS - 2 * (number % 4)] for number in range(SLOTS)}
    del decoding, running


# Any schedule


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    base = tmp_path_factory.mktemp("schedules")
    checkpoint = write_random_llava(base / "checkpoint", RandomLlava(seed=74))
    room: dict[str, Any] = {"max_prompt_tokens": 40, "max_new_tokens": TOKENS, "max_visual_tokens": 36}
    return open_bundle(
        export(ExportRequest(str(checkpoint), output=base / "bundle", keep=(12, 4), prune_layer=2, **room)).folder
    )


def play(slots: Slots, inputs: Sequence[Inputs], schedule: Sequence[tuple[int, int, int]]) -> list[tuple[int, list[int]]]:
    """Requests (slot, number) that begin some steps after the one before, and end whoever was in the slot; all answers."""
    numbers: dict[int, int] = {}
    answers: list[tuple[int, list[int]]] = []

    def end(slot: int) -> None:
        answers.append((numbers[slot], slots.running.pop(slot).tokens))

    for slot, number, steps in [*schedule, (0, 0, TOKENS)]:
        if slot in slots.running:
            end(slot)
        slots.add(slot, inputs[number])
        numbers[slot] = number
        for _ in range(steps):
            for full in [slot for slot, one in slots.running.items() if len(one.tokens) == TOKENS]:
                end(full)
            if slots.running:
                slots.step()
    return answers


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(schedule=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_no_schedule_changes_an_answer(small: Bundle, flavour: Flavour, schedule: list[tuple[int, int, int]]) -> None:
    opened = open_on(small.folder, flavour)
    slots = Slots(opened.backend, small, 4)
    inputs = [slots.inputs("?" * (1 + 2 * number), pictures(number, [(84, 84)][: number % 2])) for number in range(5)]
    answers = play(slots, inputs, schedule)
    assert len(answers) >= len(schedule)
    for number in {number for number, _ in answers}:
        alone = Slots(opened.backend, small, 1).answer(0, inputs[number], TOKENS).tokens
        assert all(tokens == alone[: len(tokens)] for other, tokens in answers if other == number)
    del slots
    opened.backend.close()
    check_nothing_left(opened.device)


# What a backend refuses, and what it does where TensorRT would refuse an address


@pytest.mark.parametrize("flavour", [NEW, OLD], ids=str)
def test_slots_whose_bytes_are_no_multiple_of_256(tmp_path: Path, flavour: Flavour) -> None:
    """TensorRT takes no such address: they go through caches of one slot."""
    checkpoint = write_random_llava(tmp_path / "checkpoint", RandomLlava(seed=73, kv_heads=1))
    room: dict[str, Any] = {"max_prompt_tokens": 39, "max_new_tokens": TOKENS, "max_visual_tokens": 36}
    folder = export(ExportRequest(str(checkpoint), output=tmp_path / "bundle", keep=(12, 3), prune_layer=2, **room)).folder
    opened, bundle = open_on(folder, flavour), open_bundle(folder)
    slots = Slots(opened.backend, bundle, 3)
    part = slots.caches.parts["llm_lower"]
    assert part.nbytes // part.copies // 3 // len(part.slot_bindings(0, 0)) % 256
    inputs = [slots.inputs("What?" + "!" * slot, pictures(slot, [(84, 84)])) for slot in range(3)]
    for slot, one in enumerate(inputs):
        slots.add(slot, one)
    for _ in range(TOKENS - 1):
        slots.step()
    together = {slot: one.tokens for slot, one in slots.running.items()}
    alone = Slots(opened.backend, bundle, 1)
    assert together == {slot: alone.answer(0, one, TOKENS).tokens for slot, one in enumerate(inputs)}
    del slots, alone
    opened.backend.close()
    check_nothing_left(opened.device)


def fresh(opened: Opened, slots: int) -> TensorRtCaches:
    caches: TensorRtCaches = opened.backend.new_caches(slots)
    return caches


def test_a_step_of_fewer_slots_loses_the_others(opened: Opened) -> None:
    """Where buffers change places; the slots may begin anew."""
    caches = fresh(opened, 3)
    mrope = bool(open_bundle(opened.folder).manifest.model.decoder.mrope_section)

    def decode(rows: list[int]) -> None:
        feeds = token_feeds([5] * len(rows), rows, rows, mrope=mrope)
        opened.backend.decode(caches, feeds)

    decode([0, 0, 0])
    decode([1])
    if opened.engines.record.graphs["llm_lower"].aliased_caches:
        decode([2, 1, 1])
        return
    with pytest.raises(BackendError, match=r"slots \[1, 2\] of llm_lower have lost their cache rows"):
        decode([2, 1, 1])
    with pytest.raises(BackendError, match=r"slots \[2\] of llm_lower have lost"):
        decode([2, 0, 1])
    decode([2, 0, 0])
    decode([3, 1, 1])


@pytest.mark.parametrize("slot", [-1, 3])
def test_slots_that_are_not_there(opened: Opened, family: Family, slot: int) -> None:
    slots = Slots(opened.backend, family.bundle, 3)
    prompt, images = asked(2)
    with pytest.raises(BackendError, match=f"slot {slot} of caches with 3 slots"):
        slots.add(slot, slots.inputs(prompt, images))


def test_few_numbers_of_slots_are_run(opened: Opened) -> None:
    """For each one contexts, buffers and a captured graph are kept."""
    assert [opened.backend.step_slots(needed, 6) for needed in range(1, 7)] == [1, 2, 4, 4, 6, 6]


def test_steps_are_kept_for_every_number_of_slots(opened: Opened) -> None:
    """Made once for each, and for each of two buffers; then they are one launch."""
    caches, device = fresh(opened, 3), opened.device
    mrope = bool(open_bundle(opened.folder).manifest.model.decoder.mrope_section)
    row = np.zeros(3, np.int64)

    def decode(count: int) -> None:
        feeds = token_feeds([5] * count, row[:count].tolist(), row[:count].tolist(), mrope=mrope)
        opened.backend.decode(caches, feeds)
        row[:count] += 1
        row[count:] = 0

    counts = [3, 3, 2, 2, 1, 1, 1]
    for _ in range(4):
        for count in counts:
            decode(count)
    copies = 1 if opened.engines.record.graphs["llm_lower"].aliased_caches else 2
    assert len(caches.steps) == 3 * copies and all(step.is_captured for step in caches.steps.values())
    before = device.calls.copy()
    for count in counts:
        decode(count)
    assert (device.calls - before)["cudaGraphLaunch"] == len(counts) and not (device.calls - before)["cudaMalloc"]
