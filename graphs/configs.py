"""Dimensions of the model parts, as the graphs need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "float16", "bfloat16"]
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu")


@dataclass(frozen=True)
class ClipVisionConfig:
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
    kind: Literal["clip"] = "clip"

    @property
    def grid_side(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches, and so visual tokens, of one crop."""
        return self.grid_side**2


@dataclass(frozen=True)
class QwenVisionConfig:
    """The vision tower of Qwen2.5-VL: any resolution, window attention but in a few layers, and a 2 x 2 merger.

    ``window_patches`` is the side of an attention window in patches (112 pixels / 14 = 8); ``full_attention_layers`` are
    the layers that attend to the whole image; ``max_grid_side`` bounds a side of the image in patches.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_patches: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    full_attention_layers: tuple[int, ...]
    out_hidden_size: int
    activation: str
    max_grid_side: int
    rms_norm_eps: float = 1e-6
    num_channels: int = 3
    kind: Literal["qwen2_5_vl"] = "qwen2_5_vl"

    @property
    def patch_values(self) -> int:
        """Numbers in one patch of pixel_values."""
        return self.num_channels * self.temporal_patch_size * self.patch_size**2


VisionConfig = ClipVisionConfig | QwenVisionConfig


@dataclass(frozen=True)
class ProjectorConfig:
    """LLaVA's two-layer projector from vision width to LLM width."""

    input_size: int
    hidden_size: int
    activation: str
    bias: bool = True


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-style decoder (RMSNorm, rotary positions, gated MLP; MHA or GQA): Llama, Mistral, Qwen2."""

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
    attention_bias: bool = False  # of q, k and v
    output_bias: bool = False  # of o
    mlp_bias: bool = False
    rope_factor: float = 1.0  # linear position interpolation; 1 is plain rotary embedding
    mrope_section: tuple[int, ...] = ()  # pairs of channels rotated by time, height and width; () is one position a token
    tie_word_embeddings: bool = False
