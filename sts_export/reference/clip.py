"""A CLIP tower, a two-layer projector and a decoder of one position per row: what the LLaVA families have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sts_export.errors import CheckpointError
from sts_export.reference.attention import cls_row, column_means, rounded
from sts_export.reference.model import ReferenceModel
from sts_export.reference.prompt import Prompt
from sts_export.reference.tower_layers import ClipLayers, LayeredTower


class ClipReference(ReferenceModel):
    """A CLIP tower, a two-layer projector, and a decoder with one position per row."""

    towers = ("clip_vision_model",)
    gives = frozenset(
        {
            "cls_attention",
            "early_cls_attention",
            "received_attention",
            "early_received_attention",
            "middle_received_attention",
            "mean_keys",
            "cls_features",
        }
    )

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
            raise CheckpointError(
                "the reference knows one vision feature layer without its CLS token: use a checkpoint with "
                "vision_feature_select_strategy 'default' and an integer vision_feature_layer"
            )
        self.crop_side: int = config.vision_config.image_size // config.vision_config.patch_size
        self.crop_tokens = self.crop_side**2
        self.num_visual_tokens = self.crop_tokens

    @torch.no_grad()
    def tower(self, pixel_values: Tensor, needs: frozenset[str] = frozenset()) -> tuple[Tensor, dict[str, Tensor]]:
        """Patch features, and what else is asked for.

        Layers count from 1: layer l writes hidden state l, and the feature layer is the last one that runs, n of them.
        The early one is round(n / 4), the middle one round(3 n / 8), both at least 1.

        Args:
            pixel_values: [crops, 3, H, W].
            needs: of ``gives``.

        Returns:
            features [crops, P, C]: hidden state of ``vision_feature_layer`` without CLS; and by name: ``cls_features``
            [crops, C], its CLS; ``mean_keys`` [crops, P, head_dim] float32; attention of a layer [crops, P] float32, mean
            over heads, softmax over CLS and patches: CLS's to each patch, or each patch's from all patches on average.
        """
        tower = self.model.model.vision_tower
        states = tower(pixel_values.to(self.model.dtype), output_hidden_states=True).hidden_states
        last = self.model.config.vision_feature_layer % len(states)
        if last == 0:
            raise CheckpointError("vision_feature_layer 0 is the embedding: no encoder layer has attended to anything yet")
        early, middle = max(1, rounded(last / 4)), max(1, rounded(last * 3 / 8))
        given: dict[str, Tensor] = {}
        for need in needs:
            number = early if need.startswith("early_") else middle if need.startswith("middle_") else last
            if need == "cls_features":
                given[need] = states[last][:, 0]
                continue
            layer = tower.encoder.layers[number - 1]
            normed = layer.layer_norm1(states[number - 1])
            split = (*normed.shape[:2], layer.self_attn.num_heads, layer.self_attn.head_dim)
            query, key = (project(normed).view(split) for project in (layer.self_attn.q_proj, layer.self_attn.k_proj))
            if need == "mean_keys":
                given[need] = key[:, 1:].float().mean(dim=2)
            elif need.endswith("cls_attention"):
                given[need] = cls_row(query, key, layer.self_attn.scale)
            else:
                given[need] = column_means(query, key, layer.self_attn.scale, cls=True)
        return states[last][:, 1:], given

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
