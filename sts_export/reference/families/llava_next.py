"""LLaVA-NeXT: a base crop and tiles, stitched, unpadded, with a newline after every row (anyres)."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil, LlavaNextProcessor

from sts_export.reference.clip import ClipReference
from sts_export.reference.prompt import NEWLINE, ImageInput, VisualFeatures, raster
from sts_export.reference.weights import Source, load_weights


class LlavaNextReference(ClipReference):
    """LlavaNextForConditionalGeneration."""

    decoders = ("llama", "mistral")
    one_crop = False

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        side = model.config.vision_config.image_size
        tiles = max((height // side) * (width // side) for height, width in model.config.image_grid_pinpoints)
        self.num_visual_tokens = (1 + tiles) * self.crop_tokens

    @classmethod
    def load(cls, source: Source, dtype: torch.dtype, attention: str) -> LlavaNextReference:
        model = load_weights(LlavaNextForConditionalGeneration, source, dtype, attention)
        processor = LlavaNextProcessor.from_pretrained(source.processor, local_files_only=True)
        processor.image_processor = LlavaNextImageProcessorPil.from_pretrained(source.processor, local_files_only=True)
        return cls(model, processor)

    def process(self, image: Image.Image) -> ImageInput:
        inputs = self.processor.image_processor(image, return_tensors="pt")
        pixel_values: Tensor = inputs["pixel_values"][0]
        height, width = (int(side) for side in inputs["image_sizes"][0])
        packed = self.packing(len(pixel_values), (height, width))
        tokens = iter(range(len(packed)))
        layout = tuple(NEWLINE if patch == NEWLINE else next(tokens) for patch in packed.tolist())
        patches, grid = packed[packed != NEWLINE], (self.crop_side, self.crop_side)
        places = raster(*grid)[patches % self.crop_tokens]
        return ImageInput(pixel_values, (height, width), layout, patches // self.crop_tokens, places, grid)

    def packing(self, crops: int, size: tuple[int, int]) -> Tensor:
        """Which patch each row of the image is: [rows] int64 of ``crop * P + patch``, or ``NEWLINE``.

        The model's own packing, asked with features that carry their own number (float64 holds any of them).
        """
        numbers = torch.arange(crops * self.crop_tokens, dtype=torch.float64).view(1, crops, self.crop_tokens, 1)
        packed, _ = self.model.model.pack_image_features(
            numbers,
            torch.tensor([size]),
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=torch.tensor([NEWLINE], dtype=torch.float64),
        )
        rows: Tensor = packed[0][:, 0].to(torch.int64)
        return rows

    def vision(self, image: ImageInput, needs: frozenset[str] = frozenset()) -> VisualFeatures:
        features, given = self.tower(image.pixel_values, needs)
        cls = given.pop("cls_features", None)
        packed = self.packing(len(image.pixel_values), (image.size[0], image.size[1]))
        patches = packed[packed != NEWLINE]
        tower = {name: values.flatten(0, 1)[patches] for name, values in given.items()}
        return VisualFeatures(features.flatten(0, 1)[patches], tower, cls)

    def newline(self) -> Tensor:
        """``image_newline``: [D]."""
        row: Tensor = self.model.model.image_newline
        return row


REFERENCE = LlavaNextReference
