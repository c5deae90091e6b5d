"""Where tokens stand in pictures: a picture whose colours are coordinates is sent through transformers' own processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil, Qwen2VLImageProcessorPil

from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.media.anyres import AnyresImages
from sts_export.media.fixed import FixedImages
from sts_export.media.places import Box, TokenGrid, middle_box
from sts_export.media.prepared import ImagePreparer, View
from sts_export.media.processor import ImageProcessor
from sts_export.media.qwen import QwenImages

SIDE = 112
VISION = ClipVisionConfig(SIDE, 14, 32, 64, 4, 2, 1e-5, "quick_gelu")
QWEN = QwenVisionConfig(14, 2, 2, 8, 32, 52, 2, 4, (1, 3), 64, "silu", max_grid_side=64)
TILINGS = [(SIDE, 2 * SIDE), (2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE), (3 * SIDE, SIDE), (SIDE, 3 * SIDE)]
SIZES = [(112, 112), (640, 480), (480, 640), (333, 111), (111, 300), (700, 90), (1000, 997)]
SQUARE = {"height": SIDE, "width": SIDE}


def fixed(**settings: Any) -> FixedImages:
    own = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, **settings}
    return FixedImages(ImageProcessor(CLIPImageProcessorPil(**own), Path("source")), VISION)


PREPARERS: dict[str, ImagePreparer] = {
    "cut": fixed(),
    "squashed": fixed(size=SQUARE, do_center_crop=False),
    "larger, then cut": fixed(size={"shortest_edge": 150}),
    "smaller, then padded": fixed(size={"shortest_edge": 80, "longest_edge": 100}),
    "limited, then padded": fixed(size={"max_height": 100, "max_width": 90}),
    "tiles": AnyresImages(
        ImageProcessor(
            LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=TILINGS),
            Path("source"),
        ),
        VISION,
        TILINGS,
    ),
    "any size": QwenImages(
        ImageProcessor(Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 80 * 784}), Path("source")),
        QWEN,
        126,
    ),
}


def coordinates(width: int, height: int) -> Image.Image:
    """Red goes from left to right, green from top to bottom, blue is not that of padding."""
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.stack([40 + 200 * across, 40 + 200 * down, np.full_like(down, 255)], -1).round().astype(np.uint8))


def centres(grid: TokenGrid) -> NDArray[np.float64]:
    """[rows, columns, 2]: x and y in fractions of the picture."""
    left, top, right, bottom = grid.box
    across = left + (right - left) * (np.arange(grid.columns) + 0.5) / grid.columns
    down = top + (bottom - top) * (np.arange(grid.rows) + 0.5) / grid.rows
    return np.stack(np.meshgrid(across, down), -1)


def seen(view: View) -> NDArray[np.float64]:
    """[rows, columns, 3]: the mean colour of every token."""
    pixels = np.asarray(view.picture, np.float64)
    high, wide = pixels.shape[0] // view.rows, pixels.shape[1] // view.columns
    colours: NDArray[np.float64] = pixels.reshape(view.rows, high, view.columns, wide, 3).mean((1, 3))
    return colours


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PREPARERS)
def test_tokens_stand_where_the_tower_sees_them(name: str, size: tuple[int, int]) -> None:
    picture = coordinates(*size)
    image, views = PREPARERS[name].prepare(picture), PREPARERS[name].views(picture)
    assert image.places is not None and (image.places.width, image.places.height) == size
    assert sum(grid.columns * grid.rows for grid in image.places.grids) == image.num_tokens
    for grid, view in zip(image.places.grids, views, strict=True):
        assert (grid.columns, grid.rows, grid.first) == (view.columns, view.rows, view.first)
        colours, expected = seen(view), centres(grid)
        whole = colours[..., 2] > 254.5  # no padding in it
        token = np.array([(grid.box[2] - grid.box[0]) / grid.columns, (grid.box[3] - grid.box[1]) / grid.rows])
        away = np.abs((colours[..., :2] - 40) / 200 - expected)[whole]
        assert (whole.any() or "padded" in name) and (away <= 0.15 * token + 0.006).all(), away.max(0) / token
        # Padding is where the box leaves the picture, and nowhere else but for what rounding leaves.
        outside = ((expected < -token / 2) | (expected > 1 + token / 2)).any(-1)
        assert not (whole & outside).any()


@pytest.mark.parametrize(
    ("picture", "cut", "expected"),
    [
        ((100, 50), (50, 50), (0.25, 0, 0.75, 1)),
        ((50, 50), (50, 50), (0, 0, 1, 1)),
        ((50, 100), (100, 100), (-0.5, 0, 1.5, 1)),
        ((5, 4), (2, 4), (0.2, 0, 0.6, 1)),
    ],
)
def test_cuts_out_of_the_middle(picture: tuple[int, int], cut: tuple[int, int], expected: Box) -> None:
    assert middle_box(picture, cut) == pytest.approx(expected)
