"""Every layer of the towers, against what transformers' own run of the tower shows of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sts_export.reference import ReferenceModel, tower_layers
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava
from tests.reference.helpers import SIZES

torch.set_num_threads(1)


def test_clip_layers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_random_llava(tmp_path_factory.mktemp("layers"), RandomLlava(seed=3, attention_bias=True))
    model = ReferenceModel.open(folder, attention="eager")
    image = model.process(random_image(2))
    expected: Any = model.model.model.vision_tower(image.pixel_values, output_attentions=True, output_hidden_states=True)
    tower = model.layered_tower()
    layers = list(tower.layers(image))
    assert [layer.number for layer in layers] == list(range(1, tower.num_layers + 1))
    assert (tower.num_layers, tower.feature_layer, tower.attention) == (3, 2, "cls_attention")
    for layer in layers:
        torch.testing.assert_close(layer.features, expected.hidden_states[layer.number][:, 1:])
        torch.testing.assert_close(layer.attention, expected.attentions[layer.number - 1].mean(dim=1)[:, 0, 1:])
    seen = model.vision(image)
    torch.testing.assert_close(layers[tower.feature_layer - 1].features[0], seen.features)


def test_tiles_are_crops(models: Callable[[str], ReferenceModel]) -> None:
    model = models("vicuna")
    image = model.process(random_image(1, (300, 200)))
    crops = len(image.pixel_values)
    assert crops > 1
    for layer in model.layered_tower().layers(image):
        assert layer.features.shape[:2] == layer.attention.shape == (crops, model.crop_tokens)  # type: ignore[attr-defined]


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """[patches, heads, d] by angles [patches, d / 2]: pairs of halves, as complex numbers."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def received(block: Any, hidden: Tensor, ends: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """[patches]: the column mean of the block's whole attention matrix, in which other windows are masked."""
    heads, width = block.attn.num_heads, hidden.shape[1]
    query, key, _ = block.attn.qkv(block.norm1(hidden)).split(width, dim=1)
    cos, sin = rotary
    angles = torch.atan2(sin, cos)[:, : cos.shape[1] // 2]
    query, key = (rotated(part.view(len(hidden), heads, -1), angles) for part in (query, key))
    logits = torch.einsum("qhd,khd->hqk", query, key) / (width // heads) ** 0.5
    window = torch.zeros(len(hidden), dtype=torch.int64)
    for number, (first, end) in enumerate(pairwise(ends.tolist())):
        window[first:end] = number
    masked = logits.masked_fill(window[:, None] != window[None], -torch.inf)
    scores: Tensor = masked.softmax(dim=-1).mean(dim=(0, 1))
    return scores


@pytest.mark.parametrize("at_once", [1 << 24, 500])
@pytest.mark.parametrize("size", [SIZES[0], SIZES[3]])
def test_qwen_layers(
    models: Callable[[str], ReferenceModel], monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], at_once: int
) -> None:
    monkeypatch.setattr(tower_layers, "_SCORES_AT_ONCE", at_once)
    model = models("qwen")
    image = model.process(random_image(4, size))
    visual = model.model.model.visual
    seen: list[tuple[Tensor, dict[str, Any], Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _, args, kwargs, out: seen.append((args[0], kwargs, out)), with_kwargs=True)
        for block in visual.blocks
    ]
    try:
        merged = visual(image.pixel_values, torch.tensor([image.size])).pooler_output
    finally:
        for hook in hooks:
            hook.remove()
    # Where the tower puts each merged token, read off its output: the merger works on each by itself.
    by_window = visual.merger(seen[-1][2])
    order = torch.cdist(merged, by_window).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(image.num_visual_tokens))
    tower = model.layered_tower()
    layers = list(tower.layers(image))
    assert (tower.num_layers, tower.feature_layer, tower.attention) == (4, 4, "received_attention")
    assert [layer.number for layer in layers] == [1, 2, 3, 4]
    tokens = image.num_visual_tokens
    assert len({len(kwargs["cu_seqlens"]) for _, kwargs, _ in seen}) == 2  # window layers and whole ones
    for layer, block, (hidden, kwargs, out) in zip(layers, visual.blocks, seen, strict=True):
        torch.testing.assert_close(layer.features[0], out.view(tokens, -1)[order])
        scores = received(block, hidden, kwargs["cu_seqlens"], kwargs["position_embeddings"])
        torch.testing.assert_close(layer.attention[0], scores.view(tokens, -1).mean(dim=1)[order])
        assert layer.attention.mean() == pytest.approx(1 / (4 * tokens))  # in all, the queries give what they have
