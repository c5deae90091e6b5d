"""Qwen2.5-VL by hand: tokens of the merger, three-dimensional positions in both modes, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sts_export.errors import ImageError, PromptError, RequestError
from sts_export.reference import ReferenceModel, generate, repulsion_select
from sts_export.testing.checkpoints import random_image
from tests.reference.helpers import config_for, decoder_inputs, own_inputs, user

Models = Callable[[str], ReferenceModel]


def test_tokens_are_the_rows_transformers_makes(models: Models) -> None:
    """The merger's output of each image alone, in raster order, is what transformers hands to its decoder for all at once."""
    model, images = models("qwen"), [random_image(1, (300, 40)), random_image(2, (640, 480))]
    prompt = model.prepare("What?", images)
    assert [image.size for image in prompt.images] == [(1, 4, 30), (1, 14, 20)]
    assert [image.layout for image in prompt.images] == [tuple(range(30)), tuple(range(70))]
    embeds, positions = decoder_inputs(model, own_inputs(model, [user("What?", 2)], images))
    for image, start in zip(prompt.images, prompt.starts, strict=True):
        features = model.vision(image).features
        torch.testing.assert_close(embeds[start : start + len(features)], features, atol=1e-5, rtol=1e-4)
    every, following = model.positions(prompt, torch.arange(len(prompt.ids)), original=False)
    assert torch.equal(every, positions) and following == int(positions.max()) + 1


def test_stage1_is_repulsion_of_the_mergers_output(models: Models) -> None:
    model = models("qwen")
    prompt = model.prepare("What?", [random_image(1, (300, 40)), random_image(2, (640, 480))])
    for anchor in ("mean", "first"):
        result = generate(model, prompt, (), config_for(model, 12, 4, anchor=anchor), 1)
        features = [model.vision(image).features for image in prompt.images]
        assert result.kept_stage1 == [repulsion_select(each, 12, anchor=anchor).tolist() for each in features]
        assert [len(crops) for crops in result.trace.choices] == [1, 1]


@pytest.mark.parametrize("mode", ["reindex", "keep"])
def test_positions_by_hand(models: Models, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 2 rows of 15 tokens between texts, of which tokens 0, 16 and 29 are kept, then 16 and 29."""
    model = models("qwen")
    prompt = model.prepare("What is it?", [random_image(0, (300, 40))])
    b = prompt.starts[0]
    after = len(prompt.ids) - b - 30
    rotary, seen = model.rotary, list[list[list[int]]]()

    def spy(hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        seen.append(positions.tolist())
        return rotary(hidden, positions)

    monkeypatch.setattr(model, "rotary", spy)
    result = generate(
        model,
        prompt,
        (),
        config_for(model, 3, 2, positions=mode),
        3,
        kept_stage1=[[0, 16, 29]],
        kept_stage2=[16, 29],
        forced_tokens=[5, 6, 7],
    )

    def around(*visual: int) -> list[int]:  # the text after the image continues behind its longer side
        return [*range(b), *visual, *range(b + 15, b + 15 + after)]

    lower = [around(b, b, b), around(b, b + 1, b + 1), around(b, b + 1, b + 14)]
    kept = [around(b, b), around(b + 1, b + 1), around(b + 1, b + 14)]
    upper = kept if mode == "keep" else [list(range(b + 2 + after))] * 3
    assert result.trace.positions is not None and result.trace.positions.tolist() == lower
    assert result.trace.upper_positions is not None and result.trace.upper_positions.tolist() == upper
    lower_next = b + 15 + after
    upper_next = lower_next if mode == "keep" else b + 2 + after
    steps = [[[lower_next]] * 3, [[upper_next]] * 3, [[lower_next + 1]] * 3, [[upper_next + 1]] * 3]
    assert seen == [lower, lower, lower, upper, *steps]


def test_reindex_where_only_stage1_dropped(models: Models) -> None:
    """Stage 2 leaves all of stage 1's tokens and numbers them anew; a prompt that lost nothing keeps its positions."""
    model = models("qwen")
    prompt = model.prepare("What is it?", [random_image(0, (300, 40))])
    dropped = generate(model, prompt, (), config_for(model, 9, 9, positions="reindex"), 1).trace
    assert dropped.upper_positions is not None
    assert dropped.upper_positions.tolist() == [list(range(len(prompt.ids) - 21))] * 3
    whole = generate(model, prompt, (), config_for(model, 30, 30, positions="reindex"), 1).trace
    assert whole.upper_positions is not None and whole.positions is not None
    assert torch.equal(whole.upper_positions, whole.positions) and int(whole.positions.max()) < len(prompt.ids) - 1


def test_refusals(models: Models) -> None:
    model, image = models("qwen"), random_image(0)
    with pytest.raises(RequestError, match="no CLS token"):
        generate(model, "What?", [image], config_for(model, 9, 3, anchor="saliency"), 1)
    pad = "<|image_pad|>"
    with pytest.raises(PromptError, match="without anything between"):
        generate(model, f"<|vision_start|>{pad}{pad}<|vision_end|>What?", [image, image], None, 1, chat=False)
    with pytest.raises(ImageError, match="aspect ratio"):
        model.prepare("What?", [image.resize((1000, 4))])
