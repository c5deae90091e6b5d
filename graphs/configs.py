"""Dimensions of the model parts, as the graphs need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower.

    ``feature_layers`` is the number of encoder layers that run before the features are taken (LLaVA's
    ``vision_feature_layer = -2`` of n layers: n - 1).
    """

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    feature_layers: int
    layer_norm_eps: float
    activation: str
    num_channels: int = 3

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """N, visual tokens of one crop."""
        return self.num_patches


@dataclass(frozen=True)
class ProjectorConfig:
    """LLaVA's two-layer projector from vision width to LLM width."""

    input_size: int
    hidden_size: int
    activation: str
    bias: bool = True


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-style decoder (RMSNorm, rotary positions, gated MLP; MHA or GQA)."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_factor: float = 1.0  # linear position interpolation; 1 is plain rotary embedding
    tie_word_embeddings: bool = False
