"""Batches: every request is answered as it would be alone, whatever runs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export import Pipeline
from sts_export.errors import ImageError, PromptError, RequestError
from sts_export.requests.sampling_config import SamplingConfig
from tests.support.mixed_requests import FAMILIES, IMAGES, NEW, PROMPTS, QUANTIZED, SQUARE, Opened, alone, same, without_times
from tests.support.pipelines import Spy

torch.set_num_threads(1)


@pytest.mark.parametrize("name", [*FAMILIES, *QUANTIZED])
def test_equals_singles(opened: Opened, name: str) -> None:
    """Prompts of other lengths, pictures of other sizes, one, two or none of them."""
    pipeline = opened(name)
    single = alone(pipeline, ignore_eos=True)
    same(pipeline.generate(PROMPTS, IMAGES, ignore_eos=True), single)
    assert len({result.prompt_tokens for result in single}) > 4
    assert len({tuple(result.token_ids) for result in single}) > 4
    assert [result.visual_tokens.total for result in single].count(0) == 2
    kept = {result.visual_tokens.stage1 for result in single}
    assert len(kept) == (3 if name in ("llava", "llava-int8", "qwen-reindex") else len(kept)) and len(kept) >= 3
    assert any(result.newline_tokens for result in single) == name.startswith("llava_next")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_requests_does_not_matter(opened: Opened, name: str) -> None:
    pipeline = opened(name)
    there = pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=4)
    same(pipeline.generate(PROMPTS[::-1], IMAGES[::-1], ignore_eos=True, max_new_tokens=4), there[::-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_that_end_earlier(opened: Opened, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """End tokens at other steps: the others go on, and the one that ended says nothing more."""
    pipeline = opened(name)
    whole = alone(pipeline, ignore_eos=True)
    ends = (whole[0].token_ids[3], whole[2].token_ids[6], whole[3].token_ids[0], whole[6].token_ids[5])
    monkeypatch.setattr(pipeline.tokenizer, "eos_token_ids", ends)
    single = alone(pipeline)
    assert len({len(result.token_ids) for result in single}) >= 3
    assert single[3].token_ids == [ends[2]] and single[3].text == "" and single[3].finish_reason == "stop"
    same(pipeline.generate(PROMPTS, IMAGES), single)


@pytest.mark.parametrize("name", FAMILIES)
def test_stop_strings(opened: Opened, name: str) -> None:
    pipeline = opened(name)
    whole = alone(pipeline, ignore_eos=True)
    parts = [result.text[4:6] for result in (whole[0], whole[2], whole[5])]
    stops = [part for part in parts if part and "\N{REPLACEMENT CHARACTER}" not in part] or [whole[0].text[0]]
    single = alone(pipeline, ignore_eos=True, stop=stops)
    assert any(result.finish_reason == "stop" for result in single)
    same(pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, stop=stops), single)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_with_a_seed(opened: Opened, name: str) -> None:
    pipeline = opened(name)
    sampling = SamplingConfig(temperature=1.3, top_k=50, top_p=0.95, seed=11)
    single = alone(pipeline, ignore_eos=True, sampling=sampling)
    same(pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, sampling=sampling), single)
    greedy = pipeline.generate(PROMPTS, IMAGES, ignore_eos=True)
    assert all(one.token_ids != other.token_ids for one, other in zip(single, greedy, strict=True))


@pytest.mark.parametrize("name", [*FAMILIES, *QUANTIZED])
def test_all_requests_run_together(opened: Opened, name: str) -> None:
    """Eight prompts of their own into eight slots, then all in every step, whatever their pictures and lengths are."""
    pipeline = Pipeline(opened(name).bundle.folder, threads=1)
    spy = Spy.on(pipeline)
    pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3)
    prompts, steps = spy.decoder[:8], spy.decoder[8:]
    assert [call.slot for call in prompts] == [*range(8)] and [call.batch for call in prompts] == [1] * 8
    assert len({call.inputs["input_ids"].shape for call in prompts}) > 4
    assert [call.slot for call in steps] == [None] * 2 and spy.batches == [8, 8]
    assert spy.calls.count("vision_encoder") == spy.calls.count("selector") == 8
    assert len({id(call.caches) for call in spy.decoder}) == 1
    before = spy.calls.count("new_caches")
    pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3)
    assert spy.calls.count("new_caches") == before == 1  # buffers are used again


def test_a_full_cache_beside_a_short_prompt(opened: Opened) -> None:
    """The request that ended goes on in its last rows, to the end of the longest answer."""
    pipeline = opened("llava")
    capacities = pipeline.manifest.capacities
    letters = next(n for n in range(400) if len(pipeline.prepare_ids("!" * n or "?", [])) == capacities.rows[1] - 2)
    long, short = "!" * letters, "What?"
    single = [pipeline.generate(prompt, max_new_tokens=3, ignore_eos=True) for prompt in (long, short)]
    assert single[0].prompt_tokens == capacities.rows[1] - 2
    same(pipeline.generate([long, short], max_new_tokens=3, ignore_eos=True), single)
    # Each takes what fits: 3 tokens of the one, NEW of the other, whose buffers are full meanwhile.
    single = [pipeline.generate(prompt, ignore_eos=True) for prompt in (long, short)]
    assert [len(result.token_ids) for result in single] == [3, NEW]
    same(pipeline.generate([long, short], ignore_eos=True), single)
    same(pipeline.generate([short, long], ignore_eos=True), single[::-1])


def test_a_batch_of_one_and_a_list_of_messages(opened: Opened) -> None:
    pipeline = opened("llava")
    single = pipeline.generate("What?", SQUARE, ignore_eos=True)
    same(pipeline.generate(["What?"], [SQUARE], ignore_eos=True), [single])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert without_times(pipeline.generate(messages, SQUARE, ignore_eos=True)) == without_times(single)
    same(pipeline.generate([messages, messages], [SQUARE, [SQUARE]], ignore_eos=True), [single] * 2)


def test_text_alone_needs_no_images(opened: Opened) -> None:
    pipeline = opened("qwen")
    prompts: list[Any] = ["What?", "Where is it?"]
    single = [pipeline.generate(prompt, ignore_eos=True) for prompt in prompts]
    none: list[Any] = [(), [], None, [None, None], [[], ()]]
    for images in none:
        same(pipeline.generate(prompts, images, ignore_eos=True), single)


WRONG: dict[str, Any] = {
    "too-few": [SQUARE],
    "too-many": [SQUARE, SQUARE, SQUARE],
    "one-picture": SQUARE,
    "a-path": "picture.png",
    "a-path-object": Path("picture.png"),
    "bytes-as-long-as-the-prompts": b"ab",
    "text-as-long-as-the-prompts": "ab",
}


@pytest.mark.parametrize("images", WRONG.values(), ids=WRONG.keys())
def test_wrong_shapes_of_images_are_refused(opened: Opened, images: Any) -> None:
    with pytest.raises(RequestError, match="2 prompts need a list of 2 entries for images") as caught:
        opened("llava").generate(["What?", "Where?"], images)
    assert "\n" not in str(caught.value)


def test_an_error_says_which_prompt_it_is_about(opened: Opened) -> None:
    pipeline = opened("llava")
    wrong: list[tuple[list[str], list[Any], int]] = [
        (["What?", " ", "Where?"], [None] * 3, 1),
        (["What?", "Where?"], [SQUARE, "none.png"], 1),
        (["a " * 500, "Where?"], [None] * 2, 0),
    ]
    for prompts, images, place in wrong:
        with pytest.raises(RequestError) as caught:
            pipeline.generate(prompts, images)
        assert caught.value.request == place
    with pytest.raises(RequestError) as caught:
        pipeline.generate(" ")
    assert caught.value.request is None


@pytest.mark.parametrize("prompts", ["What?", ["What?", "Where?"]], ids=["one", "batch"])
@pytest.mark.parametrize("kind", ["number", "iterator"])
def test_what_is_no_list_is_refused(opened: Opened, prompts: Any, kind: str) -> None:
    images: Any = 7 if kind == "number" else iter([SQUARE, "none.png"])
    with pytest.raises(RequestError) as caught:
        opened("llava").generate(prompts, images)
    assert "\n" not in str(caught.value)


def test_one_wrong_request_stops_the_batch_before_it_runs(opened: Opened) -> None:
    pipeline = Pipeline(opened("llava").bundle.folder, threads=1)
    spy = Spy.on(pipeline)
    cases: list[tuple[type[Exception], Any, Any, dict[str, Any]]] = [
        (PromptError, ["What?", ""], [SQUARE, SQUARE], {}),
        (PromptError, ["What?", "<image> and <image>?"], [SQUARE, SQUARE], {}),
        (PromptError, ["What?", "!" * 400], [SQUARE, None], {}),
        (ImageError, ["What?", "Where?"], [SQUARE, "none.png"], {}),
        (RequestError, ["What?", "Where?"], [SQUARE, None], {"max_new_tokens": 0}),
        (RequestError, ["What?", "Where?"], [SQUARE, None], {"max_new_tokens": 1000}),
        (RequestError, ["What?", "Where?"], [SQUARE, None], {"stop": [""]}),
        (RequestError, ["What?", "Where?"], [SQUARE, None], {"batch_size": 0}),
    ]
    for error, prompts, images, settings in cases:
        with pytest.raises(error) as caught:
            pipeline.generate(prompts, images, **settings)
        assert "\n" not in str(caught.value)
    assert spy.calls == []


def test_a_batch_of_nothing(opened: Opened) -> None:
    none: list[str] = []
    assert opened("llava").generate(none, none) == []


@pytest.mark.parametrize("size", [1, 3])
def test_large_batches_are_run_in_parts(opened: Opened, size: int) -> None:
    """Memory for caches is bounded by ``batch_size``, and answers do not depend on it."""
    pipeline = Pipeline(opened("llava").bundle.folder, threads=1)
    spy = Spy.on(pipeline)
    whole = pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3)
    spy.decoder.clear()
    same(pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3, batch_size=size), whole)
    assert max(spy.batches) == max(call.caches.slots for call in spy.decoder) == size


def test_the_next_of_the_list_takes_the_place_of_one_that_ended(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the longest answer of a batch: ten requests in two slots, one of them NEW tokens long."""
    pipeline = Pipeline(opened("llava").bundle.folder, threads=1)
    whole = alone(pipeline, ignore_eos=True)
    # The first token of every answer but the first one's ends it.
    ends = {result.token_ids[0] for result in whole[1:]} - set(whole[0].token_ids)
    monkeypatch.setattr(pipeline.tokenizer, "eos_token_ids", tuple(ends))
    single = alone(pipeline)
    short = [index for index, result in enumerate(single) if len(result.token_ids) == 1]
    assert len(single[0].token_ids) == NEW and len(short) >= 3
    spy = Spy.on(pipeline)
    chosen = [0, *short]
    found = pipeline.generate([PROMPTS[index] for index in chosen], [IMAGES[index] for index in chosen], batch_size=2)
    same(found, [single[index] for index in chosen])
    assert [call.slot for call in spy.decoder if call.is_prefill] == [0] + [1] * len(short)
    assert spy.batches == [1] * (NEW - 1)
