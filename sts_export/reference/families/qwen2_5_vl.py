"""Qwen2.5-VL: pictures of any size, tokens from the merger in raster order, three-dimensional positions (M-RoPE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from sts_export.errors import CheckpointError, PromptError
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import ImageInput, Prompt, VisualFeatures
from sts_export.reference.tower_layers import LayeredTower, Qwen25VLLayers
from sts_export.reference.weights import Source, load_weights


@dataclass
class ImageAndText:
    """Image processor, tokenizer and chat template without Qwen2_5_VLProcessor, whose video processor wants torchvision."""

    image_processor: Any
    tokenizer: Any
    chat_template: str | None

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **settings)
        return text


class Qwen25VLReference(ReferenceModel):
    """Qwen2_5_VLForConditionalGeneration."""

    decoders = ("qwen2_5_vl_text",)
    towers = ("qwen2_5_vl_vision", "qwen2_5_vl")
    gives = frozenset()

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision, images = model.config.vision_config, processor.image_processor
        if (images.patch_size, images.merge_size) != (vision.patch_size, vision.spatial_merge_size):
            raise CheckpointError(
                f"the image processor makes patches of {images.patch_size} merged by {images.merge_size}, the model wants "
                f"{vision.patch_size} and {vision.spatial_merge_size}: use the processor files of this checkpoint"
            )
        self.merged: int = vision.spatial_merge_size**2
        self.num_visual_tokens = images.size["longest_edge"] // (vision.patch_size**2 * self.merged)

    @classmethod
    def load(cls, source: Source, dtype: torch.dtype, attention: str) -> Qwen25VLReference:
        model = load_weights(Qwen2_5_VLForConditionalGeneration, source, dtype, attention)
        images = Qwen2VLImageProcessorPil.from_pretrained(source.processor, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(source.processor, local_files_only=True)
        # The processor's template has the first word, as in transformers; none there means the tokenizer's.
        settings, _ = Qwen2_5_VLProcessor.get_processor_dict(source.processor, local_files_only=True)
        return cls(model, ImageAndText(images, tokenizer, settings.get("chat_template")))

    def process(self, image: Image.Image) -> ImageInput:
        inputs = self.processor.image_processor(image, return_tensors="pt")
        time, height, width = (int(side) for side in inputs["image_grid_thw"][0])
        count = time * height * width // self.merged
        crops = torch.zeros(count, dtype=torch.int64)
        return ImageInput(inputs["pixel_values"], (time, height, width), tuple(range(count)), crops)

    @torch.no_grad()
    def vision(self, image: ImageInput) -> VisualFeatures:
        """The merger's output, back in raster order; it has the decoder's width already."""
        features = self.model.model.get_image_features(image.pixel_values, torch.tensor([image.size])).pooler_output
        return VisualFeatures(features[0])

    def layered_tower(self) -> LayeredTower:
        return Qwen25VLLayers(self.model)

    def project(self, features: Tensor) -> Tensor:
        return features

    def newline(self) -> Tensor:
        raise AssertionError("this family has no newline rows")

    def positions(self, prompt: Prompt, rows: Tensor, *, original: bool) -> tuple[Tensor, int]:
        """Always those of the unpruned prompt, [3, S]; new tokens continue after the largest of them."""
        ids = torch.tensor([prompt.ids])
        if not prompt.images:  # transformers' function is for prompts with images only
            every = torch.arange(len(prompt.ids)).expand(3, -1)
            return every[:, rows], len(prompt.ids)
        ends = [start + len(image.layout) for start, image in zip(prompt.starts, prompt.images, strict=True)]
        if set(ends) & set(prompt.starts):
            raise PromptError("two images without anything between them: put <|vision_end|><|vision_start|> there")
        every, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.image_token).int(),
            image_grid_thw=torch.tensor([image.size for image in prompt.images]),
        )
        return every[:, 0, rows], int(every.max()) + 1

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions[:, None])
        return cos, sin

    def rotate(self, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        query, key = apply_rotary_pos_emb(query, key, *rotary)  # cos and sin have the sections of the axes in them
        return query, key


REFERENCE = Qwen25VLReference
