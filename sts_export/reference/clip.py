"""A CLIP tower, a two-layer projector and a decoder of one position per row: what the LLaVA families have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sts_export.errors import CheckpointError
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import Prompt
from sts_export.reference.tower_layers import ClipLayers, LayeredTower


class ClipReference(ReferenceModel):
    """A CLIP tower, a two-layer projector, and a decoder with one position per row."""

    towers = ("clip_vision_model",)
    gives = frozenset({"cls_attention"})

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
            raise CheckpointError(
                "the reference knows one vision feature layer without its CLS token: use a checkpoint with "
                "vision_feature_select_strategy 'default' and an integer vision_feature_layer"
            )
        self.crop_tokens: int = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.num_visual_tokens = self.crop_tokens

    @torch.no_grad()
    def tower(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features and their saliency.

        Args:
            pixel_values: [crops, 3, H, W].

        Returns:
            features [crops, P, C]: hidden state of ``vision_feature_layer`` without CLS; saliency [crops, P] float32:
            attention of CLS to the patches in the encoder layer that wrote that hidden state, mean over heads (softmax over
            CLS and patches).
        """
        tower = self.model.model.vision_tower
        states = tower(pixel_values.to(self.model.dtype), output_hidden_states=True).hidden_states
        index = self.model.config.vision_feature_layer % len(states)  # hidden state i is written by encoder layer i - 1
        if index == 0:
            raise CheckpointError("vision_feature_layer 0 is the embedding: no encoder layer has attended to anything yet")
        layer = tower.encoder.layers[index - 1]
        normed = layer.layer_norm1(states[index - 1])
        split = (len(normed), -1, layer.self_attn.num_heads, layer.self_attn.head_dim)
        query = layer.self_attn.q_proj(normed[:, :1]).view(split).float()
        key = layer.self_attn.k_proj(normed).view(split).float()
        attention = (torch.einsum("bqhd,bkhd->bhqk", query, key) * layer.self_attn.scale).softmax(dim=-1)
        return states[index][:, 1:], attention.mean(dim=1)[:, 0, 1:]

    def layered_tower(self) -> LayeredTower:
        return ClipLayers(self.model)

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """[K, C] -> [K, D]: the multi-modal projector on the kept rows only."""
        projected: Tensor = self.model.model.multi_modal_projector(features)
        return projected

    def newline(self) -> Tensor:
        raise AssertionError("this family has no newline rows")

    def positions(self, prompt: Prompt, rows: Tensor, *, original: bool) -> tuple[Tensor, int]:
        """Contiguous: the prompt is simply shorter; or those of the unpruned prompt."""
        if original:
            return rows[None], len(prompt.ids)
        return torch.arange(len(rows))[None], len(rows)

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        return cos, sin

    def rotate(self, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        query, key = apply_rotary_pos_emb(query, key, *rotary)  # Mistral's is the same function
        return query, key
