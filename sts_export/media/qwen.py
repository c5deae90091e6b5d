"""Qwen2.5-VL: one crop of the picture's own resolution, positions in time, height and width.

Source: transformers ``models/qwen2_5_vl/modeling_qwen2_5_vl.py`` (get_rope_index).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from sts_export.errors import ImageError
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.media.places import Places, TokenGrid
from sts_export.media.prepared import PreparedImage, View
from sts_export.media.processor import ImageProcessor
from sts_export.media.qwen_windows import encoder_indices


class QwenImages:
    """See :class:`sts_export.media.prepared.ImagePreparer`."""

    def __init__(self, processor: ImageProcessor, vision: QwenVisionConfig, max_tokens: int) -> None:
        processor.expect("pixel_values", (None, vision.patch_values))
        self._processor, self._vision, self._max_tokens = processor, vision, max_tokens

    def prepare(self, image: Image) -> PreparedImage:
        vision, outputs = self._vision, self._processor(image)
        _, height, width = (int(size) for size in outputs["image_grid_thw"][0])
        down, across = height // vision.merge_size, width // vision.merge_size
        tokens = down * across
        if tokens > self._max_tokens or max(height, width) > vision.max_grid_side:
            raise ImageError(
                f"an image of {image.width} x {image.height} becomes {across} x {down} visual tokens, and this bundle takes "
                f"{self._max_tokens}; crop it"
            )
        indices = encoder_indices(height, width, merge=vision.merge_size, window_patches=vision.window_patches)
        inputs = {
            "pixel_values": outputs["pixel_values"],
            "grid_position_ids": indices.grid_position_ids,
            "window_index": indices.window_index,
            "window_mask": indices.window_mask,
            "window_slot": indices.window_slot,
        }
        row, column = np.divmod(np.arange(tokens), across)
        return PreparedImage(
            inputs,
            crops=1,
            crop_rows=tokens,
            token_order=np.arange(tokens),
            rows=np.full(tokens, VISUAL_ROW),
            grid_positions=np.stack([np.zeros_like(row), row, column]),
            grid_span=max(down, across),
            crop_columns=across,
            places=Places(image.width, image.height, [TokenGrid(across, down, 0)]),
        )

    def views(self, image: Image) -> Sequence[View]:
        merge, patch = self._vision.merge_size, self._vision.patch_size
        _, height, width = (int(size) for size in self._processor(image)["image_grid_thw"][0])
        return [View(image.resize((width * patch, height * patch)), width // merge, height // merge, 0)]
