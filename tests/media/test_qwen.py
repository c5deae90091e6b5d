"""Qwen2.5-VL's pictures: tokens and M-RoPE positions, against transformers' image processor and get_rope_index."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from sts_export.errors import CheckpointError, ImageError
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract
from sts_export.media.processor import ImageProcessor
from sts_export.media.qwen import QwenImages
from sts_export.testing.checkpoints import random_image

VISION = QwenVisionConfig(14, 2, 2, 8, 32, 52, 2, 4, (1, 3), 64, "silu", max_grid_side=64)
SIZES = [(56, 56), (1, 1), (300, 100), (100, 300), (640, 480), (31, 900), (900, 31), (199, 1)]
BEFORE, AFTER = 3, 5  # text tokens around the image


def processor(least: int = 4 * 784, most: int = 80 * 784, **settings: int) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(size={"shortest_edge": least, "longest_edge": most}, **settings)


@pytest.fixture(scope="module")
def images() -> QwenImages:
    return QwenImages(ImageProcessor(processor(), Path("source")), VISION, 126)


def rope_index(grid: torch.Tensor, tokens: int) -> tuple[torch.Tensor, int]:
    """transformers' positions [3, sequence] of text, image, text, and that of the first generated token."""
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = partial(Qwen2_5_VLModel.get_vision_position_ids, model)
    kinds = torch.tensor([[0] * BEFORE + [1] * tokens + [0] * AFTER])
    positions, delta = Qwen2_5_VLModel.get_rope_index(model, torch.zeros_like(kinds), kinds, image_grid_thw=grid)
    return positions[:, 0], kinds.shape[1] + int(delta)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_and_positions_are_those_of_transformers(images: QwenImages, size: tuple[int, int]) -> None:
    picture = random_image(1, size)
    image = images.prepare(picture)
    expected = processor()(images=picture, return_tensors="pt")
    _, height, width = expected["image_grid_thw"][0].tolist()
    tokens = height * width // 4
    assert (image.num_tokens, image.num_newlines, image.crops, image.crop_rows) == (tokens, 0, 1, tokens)
    np.testing.assert_array_equal(image.token_order, np.arange(tokens))
    np.testing.assert_array_equal(image.rows, np.full(tokens, VISUAL_ROW))
    positions, following = rope_index(expected["image_grid_thw"], tokens)
    assert image.positions is not None
    np.testing.assert_array_equal(image.positions + BEFORE, positions[:, BEFORE : BEFORE + tokens])
    assert BEFORE + image.span == positions[0, BEFORE + tokens] and BEFORE + image.span + AFTER == following


@pytest.mark.parametrize("size", SIZES)
def test_encoder_inputs_fit_the_graph(images: QwenImages, size: tuple[int, int]) -> None:
    picture = random_image(2, size)
    inputs = images.prepare(picture).encoder_inputs
    np.testing.assert_array_equal(inputs["pixel_values"], processor()(images=picture, return_tensors="np")["pixel_values"])
    sizes: dict[str, int] = {}
    for spec in qwen_encoder_contract(VISION, "float32").inputs:
        array = inputs[spec.name]
        assert array.dtype == spec.dtype and array.ndim == len(spec.shape)
        for name, have in zip(spec.shape, array.shape, strict=True):
            assert have == (sizes.setdefault(name, have) if isinstance(name, str) else name), spec.name
    assert inputs.keys() == {spec.name for spec in qwen_encoder_contract(VISION, "float32").inputs}


@pytest.mark.parametrize("size", SIZES)
def test_the_view_is_the_resized_picture(images: QwenImages, size: tuple[int, int]) -> None:
    picture = random_image(3, size)
    image = images.prepare(picture)
    (view,) = images.views(picture)
    assert view.columns * view.rows == image.num_tokens and view.first == 0
    assert view.picture.size == (28 * view.columns, 28 * view.rows)
    assert image.positions is not None
    assert image.positions.max(axis=1).tolist() == [0, view.rows - 1, view.columns - 1]


def test_an_image_beyond_the_rotary_tables_is_refused() -> None:
    small = QwenVisionConfig(14, 2, 2, 8, 32, 52, 2, 4, (1, 3), 64, "silu", max_grid_side=8)
    images = QwenImages(ImageProcessor(processor(), Path("source")), small, 126)
    assert images.prepare(random_image(0, (112, 112))).num_tokens == 16
    with pytest.raises(ImageError, match="140 x 112 becomes 5 x 4 visual tokens, and this bundle takes 126; crop it"):
        images.prepare(random_image(0, (140, 112)))


def test_a_strip_that_the_processor_refuses(images: QwenImages) -> None:
    with pytest.raises(ImageError, match=r"cannot take an image of 201 x 1: .*aspect ratio.*; resize the image") as caught:
        images.prepare(random_image(0, (201, 1)))
    assert "\n" not in str(caught.value)


def test_a_processor_of_other_patches_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"makes unusable pixel_values of shape \[\d+, 1536\]"):
        QwenImages(ImageProcessor(processor(patch_size=16), Path("source")), VISION, 126)
