"""LLaVA-1.5: one crop, its patches in raster order."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

from sts_export.reference.clip import ClipReference
from sts_export.reference.prompt import ImageInput, VisualFeatures, raster
from sts_export.reference.weights import Source, load_weights


class LlavaReference(ClipReference):
    """LlavaForConditionalGeneration."""

    decoders = ("llama",)

    @classmethod
    def load(cls, source: Source, dtype: torch.dtype, attention: str) -> LlavaReference:
        model = load_weights(LlavaForConditionalGeneration, source, dtype, attention)
        processor = LlavaProcessor.from_pretrained(source.processor, local_files_only=True)
        processor.image_processor = CLIPImageProcessorPil.from_pretrained(source.processor, local_files_only=True)
        return cls(model, processor)

    def process(self, image: Image.Image) -> ImageInput:
        pixel_values: Tensor = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        crops = torch.zeros(self.crop_tokens, dtype=torch.int64)
        grid = (self.crop_side, self.crop_side)
        return ImageInput(pixel_values, (), tuple(range(self.crop_tokens)), crops, raster(*grid), grid)

    def vision(self, image: ImageInput, needs: frozenset[str] = frozenset()) -> VisualFeatures:
        features, given = self.tower(image.pixel_values, needs)
        cls = given.pop("cls_features", None)
        return VisualFeatures(features[0], {name: values[0] for name, values in given.items()}, cls)


REFERENCE = LlavaReference
