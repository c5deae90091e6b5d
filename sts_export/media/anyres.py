"""LLaVA-NeXT: the whole picture as one crop, and again as a grid of tiles without its padding, one newline a row.

Source: transformers ``models/llava_next/modeling_llava_next.py`` (pack_image_features, unpad_image).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.Image import Image

from sts_export.errors import CheckpointError
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.media.places import Box, Places, TokenGrid
from sts_export.media.prepared import PreparedImage, View
from sts_export.media.processor import ImageProcessor


@dataclass(frozen=True)
class Tiling:
    """A picture's grid of ``down x across`` tiles, and the part of it that is no padding, in patches."""

    down: int
    across: int
    top: int
    left: int
    height: int
    width: int


def tiling(size: tuple[int, int], resolutions: Sequence[tuple[int, int]], *, tile_pixels: int, tile_patches: int) -> Tiling:
    """The tiling of a picture.

    Args:
        size: (height, width) of the picture in pixels.
        resolutions: (height, width) to choose from.
        tile_pixels, tile_patches: side of a tile.
    """
    from transformers.image_processing_utils import select_best_resolution

    best_height, best_width = select_best_resolution(size, list(resolutions))
    down, across = best_height // tile_pixels, best_width // tile_pixels
    full_height, full_width = down * tile_patches, across * tile_patches
    height, width = size
    top = left = 0
    # The very arithmetic of unpad_image: odd paddings leave one row or column of padding in.
    if width / height > full_width / full_height:
        top = (full_height - int(round(height * (full_width / width), 7))) // 2
    else:
        left = (full_width - int(round(width * (full_height / height), 7))) // 2
    return Tiling(down, across, top, left, full_height - 2 * top, full_width - 2 * left)


def reading_order(tiling: Tiling, side: int) -> NDArray[np.int64]:
    """[N] int64: feature row (crop * side ** 2 + patch) of each token: the whole crop, then the unpadded grid row by row."""
    tiles = 1 + np.arange(tiling.down * tiling.across).reshape(tiling.down, tiling.across)
    patches = np.arange(side**2).reshape(side, side)
    grid = (tiles[:, None, :, None] * side**2 + patches[None, :, None, :]).reshape(tiling.down * side, tiling.across * side)
    read = grid[tiling.top : tiling.top + tiling.height, tiling.left : tiling.left + tiling.width]
    return np.concatenate([patches.reshape(-1), read.reshape(-1)])


def read_box(size: tuple[int, int], tiling: Tiling, side: int, patch: int) -> Box:
    """What the part that is no padding covers of the picture, which stands in the middle of the tiles.

    The rounding of the resized picture and that of unpad_image differ: a part of a patch may be missing, or be padding.

    Args:
        size: (height, width) of the picture in pixels.
        side, patch: of a tile in patches, of a patch in pixels.
    """
    tiles = (tiling.down * side * patch, tiling.across * side * patch)
    scale = min(tiles[0] / size[0], tiles[1] / size[1])
    edges = []
    for whole, own, start, count in zip(tiles, size, (tiling.top, tiling.left), (tiling.height, tiling.width), strict=True):
        resized = min(math.ceil(own * scale), whole)
        padding = (whole - resized) // 2
        edges.append(((start * patch - padding) / resized, ((start + count) * patch - padding) / resized))
    (top, bottom), (left, right) = edges
    return left, top, right, bottom


class AnyresImages:
    """See :class:`sts_export.media.prepared.ImagePreparer`."""

    def __init__(self, processor: ImageProcessor, vision: ClipVisionConfig, resolutions: Sequence[tuple[int, int]]) -> None:
        side = vision.image_size
        processor.expect("pixel_values", (1, None, vision.num_channels, side, side))
        processor.check_tilings(resolutions)
        self._processor, self._vision, self._resolutions = processor, vision, resolutions

    def prepare(self, image: Image) -> PreparedImage:
        pixels = self._processor(image)["pixel_values"][0]
        grid, side = self._tiling(image), self._vision.grid_side
        if len(pixels) != 1 + grid.down * grid.across:
            raise CheckpointError(
                f"the image processor makes {len(pixels)} crops of a picture that config.json's image_grid_pinpoints cut into "
                f"{1 + grid.down * grid.across}; use the processor files of this model"
            )
        newline_row = np.full((grid.height, grid.width + 1), VISUAL_ROW)
        newline_row[:, -1] = NEWLINE_ROW
        rows = np.concatenate([np.full(side**2, VISUAL_ROW), newline_row.reshape(-1)])
        order = reading_order(grid, side)
        grids = [TokenGrid(side, side, 0)]
        if grid.height and grid.width:
            box = read_box((image.height, image.width), grid, side, self._vision.patch_size)
            grids.append(TokenGrid(grid.width, grid.height, side**2, box))
        places = Places(image.width, image.height, grids)
        return PreparedImage({"pixel_values": pixels}, len(pixels), side**2, order, rows, crop_columns=side, places=places)

    def views(self, image: Image) -> Sequence[View]:
        """The whole crop, and the tiles put together without their padding."""
        whole, *tiles = self._processor.pictures(image)
        grid, side, pixels = self._tiling(image), self._vision.grid_side, self._vision.image_size
        views = [View(whole, side, side, 0)]
        if grid.height and grid.width:
            joined = PilImage.new("RGB", (grid.across * pixels, grid.down * pixels))
            for index, tile in enumerate(tiles):
                joined.paste(tile, (index % grid.across * pixels, index // grid.across * pixels))
            patch = self._vision.patch_size
            box = (grid.left, grid.top, grid.left + grid.width, grid.top + grid.height)
            left, top, right, bottom = (edge * patch for edge in box)
            views.append(View(joined.crop((left, top, right, bottom)), grid.width, grid.height, side**2))
        return views

    def _tiling(self, image: Image) -> Tiling:
        return tiling(
            (image.height, image.width),
            self._resolutions,
            tile_pixels=self._vision.image_size,
            tile_patches=self._vision.grid_side,
        )
