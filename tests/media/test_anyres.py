"""LLaVA-NeXT's tiles: grid, unpadding, order of tokens and newlines, against transformers fed with numbered features."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, get_anyres_image_grid_shape

from sts_export.errors import CheckpointError
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.media.anyres import AnyresImages, reading_order, tiling
from sts_export.media.prepared import PreparedImage
from sts_export.media.processor import ImageProcessor
from sts_export.testing.checkpoints import random_image

TILE, PATCH = 56, 14
SIDE = TILE // PATCH
VISION = ClipVisionConfig(TILE, PATCH, 32, 64, 4, 2, 1e-5, "quick_gelu")
NEWLINE = -1.0
# (width, height); strips lose their whole grid to unpadding.
SIZES = [(1, 1), (56, 56), (84, 84), (100, 70), (70, 100), (333, 111), (640, 480), (57, 999), (1000, 10), (10, 1000), (150, 1)]


def resolutions(tile: int) -> list[tuple[int, int]]:
    """The public ones, in their order."""
    return [(tile, 2 * tile), (2 * tile, tile), (2 * tile, 2 * tile), (3 * tile, tile), (tile, 3 * tile)]


def packed(height: int, width: int, tile: int, side: int) -> NDArray[np.int64]:
    """What transformers makes of features that are their own numbers: [tokens and newlines], -1 for a newline."""
    vision = SimpleNamespace(image_size=side, patch_size=1)  # only their quotient is used for features
    down, across = get_anyres_image_grid_shape((height, width), resolutions(tile), tile)
    numbers = torch.arange((1 + down * across) * side**2).reshape(1 + down * across, side**2, 1).double()
    pinpoints = [(high // tile * side, wide // tile * side) for high, wide in resolutions(tile)]
    best = pinpoints[resolutions(tile).index((down * tile, across * tile))]
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=[best]))
    size = torch.tensor([[height, width]])
    rows, _ = LlavaNextModel.pack_image_features(model, [numbers], size, "default", torch.tensor([NEWLINE]).double())
    return np.asarray(rows[0][:, 0], np.int64)


def as_packed(rows: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    values = np.full(len(rows), int(NEWLINE))
    values[rows == VISUAL_ROW] = order
    return values


sides = st.integers(1, 3000)


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(height=sides, width=sides, side=st.integers(1, 8))
def test_order_is_that_of_transformers(height: int, width: int, side: int) -> None:
    grid = tiling((height, width), resolutions(TILE), tile_pixels=TILE, tile_patches=side)
    assert (grid.down, grid.across) == get_anyres_image_grid_shape((height, width), resolutions(TILE), TILE)
    expected = packed(height, width, TILE, side)
    np.testing.assert_array_equal(reading_order(grid, side), expected[expected >= 0])
    assert (expected < 0).sum() == grid.height
    # The part that is read lies inside the grid, in the middle of it.
    assert grid.height + 2 * grid.top == grid.down * side and grid.width + 2 * grid.left == grid.across * side
    assert min(grid.height, grid.width, grid.top, grid.left) >= 0


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_tilings_of_the_public_model(width: int, height: int) -> None:
    """336 pixels and 24 patches a tile."""
    grid = tiling((height, width), resolutions(336), tile_pixels=336, tile_patches=24)
    expected = packed(height, width, 336, 24)
    np.testing.assert_array_equal(reading_order(grid, 24), expected[expected >= 0])
    assert len(expected) <= 5 * 576 + 3 * 24


@pytest.fixture(scope="module")
def processor() -> LlavaNextImageProcessorPil:
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=resolutions(TILE)
    )


@pytest.fixture(scope="module")
def images(processor: LlavaNextImageProcessorPil) -> AnyresImages:
    return AnyresImages(ImageProcessor(processor, Path("source")), VISION, resolutions(TILE))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_prepared_images(images: AnyresImages, processor: LlavaNextImageProcessorPil, width: int, height: int) -> None:
    picture = random_image(3, (width, height))
    image = images.prepare(picture)
    np.testing.assert_array_equal(as_packed(image.rows, image.token_order), packed(height, width, TILE, SIDE))
    assert set(image.rows.tolist()) <= {VISUAL_ROW, NEWLINE_ROW}
    expected = processor(images=picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(image.encoder_inputs["pixel_values"], expected)
    down, across = get_anyres_image_grid_shape((height, width), resolutions(TILE), TILE)
    assert image.crops == len(expected) == 1 + down * across
    assert (image.crop_rows, image.grid_positions, image.span) == (SIDE**2, None, len(image.rows))
    assert image.num_tokens <= image.crops * SIDE**2
    quota = image.quota(image.num_tokens)  # all of them: what unpadding left of each crop
    np.testing.assert_array_equal(quota.sum(1), np.bincount(image.token_order // SIDE**2, minlength=image.crops))


def patch_of(image: PreparedImage, crops: list[NDArray[np.uint8]], token: int) -> NDArray[np.uint8]:
    """Pixels of the feature row that a token is read from."""
    crop, patch = divmod(int(image.token_order[token]), SIDE**2)
    top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
    return crops[crop][top : top + PATCH, left : left + PATCH]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_views_show_every_token_in_its_place(
    images: AnyresImages, processor: LlavaNextImageProcessorPil, width: int, height: int
) -> None:
    picture = random_image(4, (width, height))
    image, views = images.prepare(picture), images.views(picture)
    crops = [np.asarray(crop) for crop in ImageProcessor(processor, Path("source")).pictures(picture)]
    assert (views[0].columns, views[0].rows, views[0].first) == (SIDE, SIDE, 0)
    assert sum(view.columns * view.rows for view in views) == image.num_tokens
    for view in views:
        assert view.picture.size == (view.columns * PATCH, view.rows * PATCH)
        pixels = np.asarray(view.picture)
        for place in range(view.columns * view.rows):
            top, left = place // view.columns * PATCH, place % view.columns * PATCH
            shown = pixels[top : top + PATCH, left : left + PATCH]
            np.testing.assert_array_equal(shown, patch_of(image, crops, view.first + place))


@pytest.mark.parametrize(
    "own",
    [[(2 * TILE, 2 * TILE), (3 * TILE, TILE)], resolutions(TILE)[::-1], resolutions(TILE)[:-1], []],
    ids=["others", "order", "fewer", "none"],
)
def test_other_tilings_are_refused(processor: LlavaNextImageProcessorPil, own: list[tuple[int, int]]) -> None:
    """config.json and the processor's settings each have their image_grid_pinpoints; their order decides ties."""
    with pytest.raises(CheckpointError, match=r"^source has image_grid_pinpoints .*; use the processor files") as caught:
        AnyresImages(ImageProcessor(processor, Path("source")), VISION, own)
    assert "\n" not in str(caught.value)


def test_tilings_as_settings_have_them() -> None:
    """JSON has lists for tuples, and the class has the public tilings where settings have none."""
    wide = ClipVisionConfig(336, PATCH, 32, 64, 4, 2, 1e-5, "quick_gelu")
    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    given = {"image_grid_pinpoints": [list(pair) for pair in resolutions(336)]}
    for settings_given in (sizes, sizes | given):
        processor = ImageProcessor(LlavaNextImageProcessorPil.from_dict(settings_given), Path("source"))
        assert AnyresImages(processor, wide, resolutions(336)).prepare(random_image(0, (900, 300))).crops == 4


def test_a_processor_that_cuts_smaller_tiles_is_refused() -> None:
    """Its crops have the right size, since each is enlarged, but there are more of them."""
    settings_given = {
        "size": {"height": TILE, "width": TILE},
        "do_center_crop": False,
        "crop_size": {"height": 28, "width": 28},
    }
    processor = LlavaNextImageProcessorPil(**settings_given, image_grid_pinpoints=resolutions(TILE))
    images = AnyresImages(ImageProcessor(processor, Path("source")), VISION, resolutions(TILE))
    with pytest.raises(CheckpointError, match=r"makes 13 crops of a picture that .* cut into 4; use the processor") as caught:
        images.prepare(random_image(0, (300, 100)))
    assert "\n" not in str(caught.value)


def test_a_processor_of_another_size_is_refused() -> None:
    other = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    with pytest.raises(CheckpointError, match=r"makes unusable pixel_values of shape .*; restore the original file"):
        AnyresImages(ImageProcessor(other, Path("source")), VISION, resolutions(TILE))
