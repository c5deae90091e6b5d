"""LLaVA-1.5's one crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPImageProcessorPil

from sts_export.errors import CheckpointError
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.media.fixed import FixedImages
from sts_export.media.processor import ImageProcessor
from sts_export.testing.checkpoints import random_image

VISION = ClipVisionConfig(84, 14, 32, 64, 4, 2, 1e-5, "quick_gelu")


def processor(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.mark.parametrize("size", [(1, 1), (84, 84), (300, 40), (40, 300), (640, 480)])
def test_every_picture_is_one_crop(size: tuple[int, int]) -> None:
    picture = random_image(0, size)
    images = FixedImages(ImageProcessor(processor(84), Path("source")), VISION)
    image = images.prepare(picture)
    assert (image.crops, image.crop_rows, image.num_tokens, image.num_newlines) == (1, 36, 36, 0)
    assert (image.grid_positions, image.grid_span) == (None, 0)
    np.testing.assert_array_equal(image.token_order, np.arange(36))
    np.testing.assert_array_equal(image.rows, np.full(36, VISUAL_ROW))
    expected = processor(84)(images=picture, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(image.encoder_inputs["pixel_values"], expected)
    (view,) = images.views(picture)
    assert (view.columns, view.rows, view.first, view.picture.size) == (6, 6, 0, (84, 84))
    # The view is what the tower gets, before it is normalised.
    shown = np.asarray(view.picture, np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (processor(84).image_mean, processor(84).image_std))
    np.testing.assert_allclose((shown - mean) / std, expected[0], atol=0.02)


@pytest.mark.parametrize("side", [56, 98])
def test_a_processor_of_another_size_is_refused(side: int) -> None:
    with pytest.raises(CheckpointError, match=r"makes unusable pixel_values of shape \[1, 3, .*; restore the original file"):
        FixedImages(ImageProcessor(processor(side), Path("source")), VISION)
