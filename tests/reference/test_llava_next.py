"""LLaVA-NeXT by hand: where each patch goes, what stage 1 sees of each crop, positions around newlines."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from sts_export.pruning.stage1.repulsion import Anchor
from sts_export.reference import NEWLINE, ReferenceModel, equal_shares, generate, repulsion_select
from sts_export.reference.families.llava_next import LlavaNextReference
from sts_export.testing.checkpoints import RandomLlavaNext, random_image, write_random_llava_next
from tests.reference.helpers import SIZES, config_for, decoder_inputs, own_inputs, transformers_generate, user

Models = Callable[[str], ReferenceModel]
NL = NEWLINE


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LlavaNextReference:
    """Crops of 2 x 2 patches."""
    folder = write_random_llava_next(tmp_path_factory.mktemp("small"), RandomLlavaNext(image_size=28))
    model = ReferenceModel.open(folder)
    assert isinstance(model, LlavaNextReference)
    return model


def test_packing_by_hand(small: LlavaNextReference) -> None:
    """Patch p of crop c is number 4 c + p; crop 0 is the whole picture."""
    # 56 x 56 fills four tiles: [1 2 / 3 4], each [0 1 / 2 3].
    assert small.packing(5, (56, 56)).tolist() == [
        *(0, 1, 2, 3),
        *(4, 5, 8, 9, NL),
        *(6, 7, 10, 11, NL),
        *(12, 13, 16, 17, NL),
        *(14, 15, 18, 19, NL),
    ]
    # 28 x 28 lies in the middle of two tiles side by side: the outer columns are padding.
    assert small.packing(3, (28, 28)).tolist() == [0, 1, 2, 3, 5, 8, NL, 7, 10, NL]
    image = small.process(random_image(0, (28, 28)))
    assert image.size == (28, 28) and image.pixel_values.shape == (3, 3, 28, 28)
    assert image.layout == (0, 1, 2, 3, 4, 5, NL, 6, 7, NL)
    assert image.crops.tolist() == [0, 0, 0, 0, 1, 2, 1, 2]
    assert small.process(random_image(0, (56, 56))).crops.tolist() == [0] * 4 + [1, 1, 2, 2] * 2 + [3, 3, 4, 4] * 2
    assert small.num_visual_tokens == 20


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_are_the_rows_transformers_makes(models: Models, size: tuple[int, int]) -> None:
    """Projected features and newlines in the layout's order are what transformers hands to its decoder."""
    model, image = models("vicuna"), random_image(4, size)
    prompt = model.prepare("What?", [image])
    embeds, _ = decoder_inputs(model, own_inputs(model, [user("What?")], [image]))
    layout, start = prompt.images[0].layout, prompt.starts[0]
    projected = model.project(model.vision(prompt.images[0]).features)
    rows = torch.stack([model.newline() if token == NL else projected[token] for token in layout])
    torch.testing.assert_close(embeds[start : start + len(layout)], rows, atol=1e-5, rtol=1e-4)
    tiles = layout[36:]
    assert tiles[-1] == NL and len(tiles) % (tiles.index(NL) + 1) == 0  # rows of one length


def test_packing_is_as_long_as_transformers_processor_says(models: Models) -> None:
    """Pictures of any shape; very long ones leave no row of the tiles, and whole tiles may be padding."""
    model, rng = models("vicuna"), random.Random(0)
    assert isinstance(model, LlavaNextReference)
    for _ in range(300):
        height, width = rng.randint(1, 1000), rng.randint(1, 1000) if rng.random() < 0.5 else rng.randint(1, 30)
        crops = image_size_to_num_patches((height, width), model.model.config.image_grid_pinpoints, 84)
        packed = model.packing(crops, (height, width))
        assert len(packed) == model.processor._get_number_of_features(height, width, 84, 84) - 1  # without CLS
        patches = packed[packed != NL]
        assert patches[:36].tolist() == list(range(36)) and len(set(patches.tolist())) == len(patches)


def test_a_picture_of_which_only_the_base_crop_is_left(models: Models) -> None:
    model, image = models("vicuna"), random_image(0, (630, 4))
    prompt = model.prepare("What?", [image])
    assert prompt.images[0].layout == tuple(range(36)) and len(prompt.images[0].pixel_values) > 1
    tokens, _ = transformers_generate(model, 4, **own_inputs(model, [user("What?")], [image]))
    assert generate(model, prompt, (), None, 4, ignore_eos=True).token_ids == tokens
    pruned = generate(model, prompt, (), config_for(model, 9, 3), 1)
    assert len(pruned.kept_stage1[0]) == 9 and len(pruned.trace.choices[0]) == 1


@pytest.mark.parametrize("anchor", ["mean", "first", "saliency"])
def test_stage1_is_repulsion_of_each_crops_candidates(models: Models, anchor: Anchor) -> None:
    """From transformers' tower alone: padding is neither a candidate nor in a crop's mean."""
    model, image = models("vicuna"), random_image(3, (300, 40))
    assert isinstance(model, LlavaNextReference)
    prompt = model.prepare("What?", [image])
    result = generate(model, prompt, (), config_for(model, 25, 9, anchor=anchor), 1)
    pixels, size = prompt.images[0].pixel_values, prompt.images[0].size
    tower: Any = model.model.model.vision_tower
    tower.config._attn_implementation = "eager"
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    tower.config._attn_implementation = "sdpa"
    packed = [patch for patch in model.packing(len(pixels), (size[0], size[1])).tolist() if patch != NL]
    per_crop = [[patch % 36 for patch in packed if patch // 36 == crop] for crop in range(len(pixels))]
    assert [len(patches) for patches in per_crop] == [36, 12, 12, 12]
    expected: list[int] = []
    for crop, share in enumerate(equal_shares(25, [36, 12, 12, 12])):
        patches = per_crop[crop]
        features, attention = out.hidden_states[-2][crop, 1:], out.attentions[1][crop].mean(dim=0)[0, 1:]
        inside = repulsion_select(features[patches], share, anchor=anchor, saliency=attention[patches])
        expected += [packed.index(36 * crop + patches[index]) for index in inside.tolist()]
    assert result.kept_stage1 == [sorted(expected)]
    assert [len(trace.order) for trace in result.trace.choices[0] if trace is not None] == [7, 6, 6, 6]
    assert len(result.trace.margins) == 25


def test_positions_by_hand(small: LlavaNextReference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both newlines stay though the second grid row lost all its tokens, and stage 2 leaves them alone."""
    prompt = small.prepare("What is it?", [random_image(0, (28, 28))])
    b = prompt.starts[0]
    after = len(prompt.ids) - b - 10
    rotary, seen = small.rotary, list[list[int]]()

    def spy(hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        seen.append(positions[0].tolist())
        return rotary(hidden, positions)

    monkeypatch.setattr(small, "rotary", spy)
    for mode in ("reindex", "keep"):
        seen.clear()
        config = config_for(small, 3, 1, positions=mode)
        result = generate(
            small, prompt, (), config, 3, ignore_eos=True, kept_stage1=[[1, 3, 4]], kept_stage2=[4], forced_tokens=[5, 6, 7]
        )
        # text, token 1, token 3, token 4, newline, newline, text
        assert (result.prompt_tokens, result.upper_prompt_tokens) == (b + 5 + after, b + 3 + after)
        lower = list(range(b + 5 + after))
        upper = list(range(b + 3 + after)) if mode == "reindex" else [*range(b), *range(b + 2, b + 5 + after)]
        assert result.trace.positions is not None and result.trace.positions.tolist() == [lower]
        assert result.trace.upper_positions is not None and result.trace.upper_positions.tolist() == [upper]
        upper_next = len(upper) if mode == "reindex" else len(lower)
        assert seen == [lower, lower, lower, upper, [len(lower)], [upper_next], [len(lower) + 1], [upper_next + 1]]
