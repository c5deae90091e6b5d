"""Batches: every request is answered as it would be alone, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export import Pipeline
from sts_export.errors import ImageError, PromptError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.result import GenerationResult
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.support.pipelines import Spy

torch.set_num_threads(1)

NEW = 12
FAMILIES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "llava": (lambda f: write_random_llava(f, RandomLlava()), {"budget": "8", "max_visual_tokens": 72}),
    "llava_next": (
        lambda f: write_random_llava_next(f, RandomLlavaNext(seed=2)),
        {"budget": "30%", "max_visual_tokens": 360},
    ),
    "qwen": (lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL()), {"budget": "30%", "max_visual_tokens": 250}),
    "qwen-reindex": (
        lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL(seed=3)),
        {"keep": (20, 9), "max_visual_tokens": 250, "choices": {"positions": "reindex"}},
    ),
}
Opened = Callable[[str], Pipeline]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    @cache
    def pipeline(name: str) -> Pipeline:
        folder = tmp_path_factory.mktemp(name)
        write, options = FAMILIES[name]
        request = ExportRequest(
            str(write(folder / "checkpoint")), folder / "bundle", max_prompt_tokens=150, max_new_tokens=NEW, **options
        )
        return Pipeline(export(request).folder, threads=1)

    return pipeline


WIDE, TALL, SQUARE = random_image(1, (210, 80)), random_image(2, (70, 180)), random_image(3, (120, 120))
REQUESTS: list[tuple[Any, Any]] = [
    ("What is on the table?", WIDE),
    ("Where?", [WIDE]),
    ("How many cats are in the picture, and what is on the table in the picture of the cat?", SQUARE),
    ("Describe the text.", None),
    ("What?", TALL),
    ([{"role": "user", "content": "Only text, as messages, and somewhat longer than the other one."}], []),
    ("Which is larger?", [SQUARE, WIDE]),
    ("The other way round: which is the larger one of the two?", (WIDE, SQUARE)),
]
PROMPTS, IMAGES = [list(column) for column in zip(*REQUESTS, strict=True)]


def without_times(result: GenerationResult) -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if name != "timings_ms"}


def alone(pipeline: Pipeline, **settings: Any) -> list[GenerationResult]:
    return [pipeline.generate(prompt, () if images is None else images, **settings) for prompt, images in REQUESTS]


def same(batch: Sequence[GenerationResult], single: Sequence[GenerationResult]) -> None:
    for index, (one, other) in enumerate(zip(batch, single, strict=True)):
        assert without_times(one) == without_times(other), index


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_singles(opened: Opened, name: str) -> None:
    """Prompts of other lengths, pictures of other sizes, one, two or none of them."""
    pipeline = opened(name)
    single = alone(pipeline, ignore_eos=True)
    same(pipeline.generate(PROMPTS, IMAGES, ignore_eos=True), single)
    assert len({result.prompt_tokens for result in single}) > 4
    assert len({tuple(result.token_ids) for result in single}) > 4
    assert [result.visual_tokens.total for result in single].count(0) == 2
    kept = {result.visual_tokens.stage1 for result in single}
    assert len(kept) == (3 if name in ("llava", "qwen-reindex") else len(kept)) and len(kept) >= 3
    assert any(result.newline_tokens for result in single) == (name == "llava_next")


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


def test_requests_with_equal_visual_rows_run_together(opened: Opened) -> None:
    """One prefill for each number of visual rows, as many requests in it as have that number."""
    pipeline = Pipeline(opened("llava").bundle.folder, threads=1)
    spy = Spy.on(pipeline)
    pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3)
    prefills = [inputs.input_ids.shape for inputs in spy.lower_inputs if inputs.input_ids.shape[1] > 1]
    assert [batch for batch, _ in prefills] == [4, 2, 2]
    assert spy.decoder_runs == 3 * 3 and spy.calls.count("encode") == 8
    before = spy.calls.count("new_caches")
    pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3)
    assert spy.calls.count("new_caches") == before  # buffers are used again


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
    spy.lower_inputs.clear()
    same(pipeline.generate(PROMPTS, IMAGES, ignore_eos=True, max_new_tokens=3, batch_size=size), whole)
    assert max(len(inputs.input_ids) for inputs in spy.lower_inputs) == size
