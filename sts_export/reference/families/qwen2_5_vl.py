"""Qwen2.5-VL: pictures of any size, tokens from the merger in raster order, three-dimensional positions (M-RoPE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, apply_rotary_pos_emb_vision

from sts_export.errors import CheckpointError, PromptError
from sts_export.reference.attention import column_means
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import ImageInput, Prompt, VisualFeatures, raster
from sts_export.reference.tower_layers import LayeredTower, Qwen25VLLayers
from sts_export.reference.weights import Source, load_weights

RECEIVED = ("received_attention", "early_received_attention", "middle_received_attention", "mean_keys")


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

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision, images = model.config.vision_config, processor.image_processor
        if (images.patch_size, images.merge_size) != (vision.patch_size, vision.spatial_merge_size):
            raise CheckpointError(
                f"the image processor makes patches of {images.patch_size} merged by {images.merge_size}, the model wants "
                f"{vision.patch_size} and {vision.spatial_merge_size}: use the processor files of this checkpoint"
            )
        self.merged: int = vision.spatial_merge_size**2
        # Layers that attend to the whole picture, counted from 1.
        self.full_layers: list[int] = [index + 1 for index in sorted(vision.fullatt_block_indexes) if index < vision.depth]
        self.gives = frozenset(RECEIVED) if self.full_layers else frozenset()
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
        side: int = self.model.config.vision_config.spatial_merge_size
        grid = (height // side, width // side)
        return ImageInput(inputs["pixel_values"], (time, height, width), tuple(range(count)), crops, raster(*grid), grid)

    @torch.no_grad()
    def vision(self, image: ImageInput, needs: frozenset[str] = frozenset()) -> VisualFeatures:
        """The merger's output, back in raster order; it has the decoder's width already."""
        watched = {need: self._layer(need) for need in sorted(needs)}
        seen: dict[int, tuple[Any, Any]] = {}

        def watch(number: int) -> Any:
            def look(attention: Any, inputs: Any, settings: dict[str, Any]) -> None:
                seen[number] = (inputs[0], settings["position_embeddings"])

            return self.model.model.visual.blocks[number - 1].attn.register_forward_pre_hook(look, with_kwargs=True)

        hooks = [watch(number) for number in set(watched.values())]
        try:
            features = self.model.model.get_image_features(image.pixel_values, torch.tensor([image.size])).pooler_output
        finally:
            for hook in hooks:
                hook.remove()
        tower = {need: self._given(need, number, *seen[number], image) for need, number in watched.items()}
        return VisualFeatures(features[0], tower)

    def _layer(self, need: str) -> int:
        """The first layer with full attention, the one nearest to the middle (of two the earlier one), or the last."""
        if need.startswith("middle_"):
            depth: int = self.model.config.vision_config.depth
            return min(self.full_layers, key=lambda number: abs(2 * number - depth))
        return self.full_layers[0 if need.startswith("early_") else -1]

    def _given(self, need: str, number: int, hidden: Tensor, rotary: Any, image: ImageInput) -> Tensor:
        """Of each token, the mean over its patches: [N] or [N, head_dim] float32 in reading order.

        Args:
            hidden: [patches, C], what enters the attention of layer ``number``, window by window.
            rotary: cos and sin of these.
        """
        attention = self.model.model.visual.blocks[number - 1].attn
        parts = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1)
        query, key = parts[:, 0], parts[:, 1]
        if need == "mean_keys":
            patches = key.float().mean(dim=1)
        else:
            query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
            patches = column_means(query[None], key[None], attention.scaling, cls=False)[0]
        tokens = patches.view(-1, self.merged, *patches.shape[1:]).mean(dim=1)
        return torch.empty_like(tokens).index_copy(0, self.window_order(image), tokens)

    def window_order(self, image: ImageInput) -> Tensor:
        """Tokens in the tower's order, window by window and in reading order within each: [N] int64."""
        vision = self.model.config.vision_config
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size
        row, column = (image.places // side).unbind(dim=1)
        order: Tensor = (row * len(image.places) + column).argsort(stable=True)
        return order

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
