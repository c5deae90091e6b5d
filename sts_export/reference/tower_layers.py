"""Every layer of a vision tower: what it makes of a picture, and how much attention each token gets in it.

Layers are counted from 1, as transformers counts hidden states: layer i writes hidden state i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids, get_vision_window_index

from sts_export.reference.prompt import ImageInput

_SCORES_AT_ONCE = 1 << 24  # attention weights held at a time


@dataclass(frozen=True)
class TowerLayer:
    """One layer's output for one picture.

    Attributes:
        number: 1 ... T.
        features: [crops, tokens, C], the hidden state that the layer writes, in reading order.
        attention: [crops, tokens] float32, of the same layer.
    """

    number: int
    features: Tensor
    attention: Tensor


class LayeredTower(ABC):
    """A vision tower that is looked at layer by layer.

    Attributes:
        num_layers: T.
        feature_layer: the layer whose output goes to stage 1; 0 is the embedding.
        attention: ``cls_attention`` or ``received_attention``.
    """

    num_layers: int
    feature_layer: int
    attention: str

    @abstractmethod
    def layers(self, image: ImageInput) -> Iterator[TowerLayer]:
        """Layer 1 ... T, one at a time: all of a large picture would not fit into memory."""


class ClipLayers(LayeredTower):
    """CLIP: patches without CLS; attention of CLS to them, mean over heads (softmax over CLS and patches)."""

    attention = "cls_attention"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tower = model.model.vision_tower
        self.num_layers = len(self.tower.encoder.layers)
        self.feature_layer = model.config.vision_feature_layer % (self.num_layers + 1)

    @torch.no_grad()
    def layers(self, image: ImageInput) -> Iterator[TowerLayer]:
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(image.pixel_values.to(self.model.dtype)))
        for number, layer in enumerate(self.tower.encoder.layers, 1):
            attention = self._cls_attention(layer, hidden)
            hidden = layer(hidden, None)
            yield TowerLayer(number, hidden[:, 1:], attention)

    @staticmethod
    def _cls_attention(layer: Any, hidden: Tensor) -> Tensor:
        normed = layer.layer_norm1(hidden)
        split = (len(normed), -1, layer.self_attn.num_heads, layer.self_attn.head_dim)
        query = layer.self_attn.q_proj(normed[:, :1]).view(split).float()
        key = layer.self_attn.k_proj(normed).view(split).float()
        weights: Tensor = (torch.einsum("bqhd,bkhd->bhqk", query, key) * layer.self_attn.scale).softmax(dim=-1)
        return weights.mean(dim=1)[:, 0, 1:]


class Qwen25VLLayers(LayeredTower):
    """Qwen2.5-VL's tower, by merged tokens: what the merger makes one token of is one token in every layer.

    Features are the states of its patches side by side, as the merger reads them; attention is the mean of what its patches
    receive: of each patch the mean over heads and over all queries of the picture.  In a window layer the queries of other
    windows give nothing, so that windows of different sizes compare.
    """

    attention = "received_attention"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tower = model.model.visual
        self.num_layers = self.feature_layer = len(self.tower.blocks)
        self.merged: int = self.tower.spatial_merge_unit

    @torch.no_grad()
    def layers(self, image: ImageInput) -> Iterator[TowerLayer]:
        tower, grid = self.tower, torch.tensor([image.size])
        order, windows = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        whole, _ = get_vision_attention_seqlens(grid, tower.config)
        back = torch.argsort(order)
        hidden = self._by_window(tower.patch_embed(image.pixel_values.to(self.model.dtype)), order)
        rotary = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, tower.spatial_merge_size))
        rotary = tuple(self._by_window(part, order) for part in rotary)
        for number, block in enumerate(tower.blocks, 1):
            ends = whole if number - 1 in tower.fullatt_block_indexes else windows
            received = self._received(block, hidden, ends.tolist(), rotary)
            hidden = block(hidden, cu_seqlens=ends, position_embeddings=rotary)
            features = hidden.reshape(len(order), -1)[back]
            yield TowerLayer(number, features[None], received.view(-1, self.merged).mean(dim=1)[back][None])

    def _by_window(self, patches: Tensor, order: Tensor) -> Tensor:
        return patches.view(len(order), self.merged, -1)[order].reshape(len(patches), -1)

    def _received(self, block: Any, hidden: Tensor, ends: list[int], rotary: tuple[Tensor, ...]) -> Tensor:
        """[patches] float32, by window."""
        heads = block.attn.num_heads
        query, key, _ = block.attn.qkv(block.norm1(hidden)).view(len(hidden), 3, heads, -1).unbind(1)
        query, key = (part.float() for part in apply_rotary_pos_emb_vision(query, key, *rotary))
        received = torch.zeros(len(hidden))
        for first, end in pairwise(ends):
            keys = key[first:end]
            for queries in query[first:end].split(max(1, _SCORES_AT_ONCE // (heads * (end - first)))):
                weights = (torch.einsum("qhd,khd->hqk", queries, keys) * block.attn.scaling).softmax(dim=-1)
                received[first:end] += weights.mean(dim=0).sum(dim=0)
        return received / len(hidden)
