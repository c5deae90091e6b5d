"""Dimensions of the model parts, as the graphs need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

Dtype = Literal["float32", "float16", "bfloat16"]
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu")


class VisionConfig(Protocol):
    """What the dimensions of all vision towers have; each kind of tower has a frozen dataclass of its own in towers/."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def kind(self) -> str:
        """Names the tower, in manifests, too."""

    @property
    def num_channels(self) -> int:
        """Of a picture."""

    @property
    def hidden_size(self) -> int:
        """Width of the layers."""

    @property
    def intermediate_size(self) -> int:
        """Width within their MLPs."""

    @property
    def num_heads(self) -> int:
        """Of their attention."""


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
