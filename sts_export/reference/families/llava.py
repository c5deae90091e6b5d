"""LLaVA-1.5: one crop, its patches in raster order."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

from sts_export.reference.clip import ClipReference
from sts_export.reference.prompt import ImageInput, VisualFeatures
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
        return ImageInput(pixel_values, (), tuple(range(self.crop_tokens)), crops)

    def vision(self, image: ImageInput) -> VisualFeatures:
        features, saliency = self.tower(image.pixel_values)
        return VisualFeatures(features[0], {"cls_attention": saliency[0]})


REFERENCE = LlavaReference
