"""LLaVA-1.5: one crop of one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.media.places import Places, TokenGrid, middle_box
from sts_export.media.prepared import PreparedImage, View
from sts_export.media.processor import ImageProcessor


class FixedImages:
    """See :class:`sts_export.media.prepared.ImagePreparer`."""

    def __init__(self, processor: ImageProcessor, vision: ClipVisionConfig) -> None:
        side = vision.image_size
        processor.expect("pixel_values", (1, vision.num_channels, side, side))
        self._processor, self._vision = processor, vision

    def prepare(self, image: Image) -> PreparedImage:
        pixels = self._processor(image)["pixel_values"]
        tokens = self._vision.num_patches
        rows = np.full(tokens, VISUAL_ROW)
        columns = self._vision.grid_side
        grid = TokenGrid(columns, columns, 0, middle_box(*self._processor.resized_and_cut(image.size)))
        places = Places(image.width, image.height, [grid])
        order = np.arange(tokens)
        return PreparedImage({"pixel_values": pixels}, 1, tokens, order, rows, crop_columns=columns, places=places)

    def views(self, image: Image) -> Sequence[View]:
        picture = self._processor.pictures(image)[0]
        return [View(picture, self._vision.grid_side, self._vision.grid_side, 0)]
