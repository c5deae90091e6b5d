"""Parts of a configuration that families share: a Llama-style decoder, a CLIP tower, LLaVA's projector.

What they read are transformers' configuration objects (:func:`read_config`), so names, precedence and defaults are settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sts_export.families.transformers_config import require
from sts_export.graphs.configs import ACTIVATIONS, DecoderConfig, ProjectorConfig
from sts_export.graphs.towers.clip_contract import ClipVisionConfig

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def max_positions(text: Any, *, mixed_layers: bool = False) -> int:
    """Rows that the decoder attends to rightly: its position limit, or its attention window where that is smaller.

    Llama models have no window of their own, but transformers' KV cache takes one that their configuration names.
    Source: transformers ``masking_utils.py``, ``cache_utils.py``.

    Args:
        mixed_layers: the model says of each layer whether it has the window (Qwen2); otherwise all layers have it.

    Raises:
        CheckpointError: layers with another kind of attention.
    """
    limit = int(text.max_position_embeddings)
    kinds = getattr(text, "layer_types", None)
    require(kinds is None or set(kinds) <= _LAYER_TYPES, "layer_types", kinds)
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if mixed_layers:
        slides = "sliding_attention" in text.layer_types
        require(not slides or text.sliding_window is not None, "layer_types without sliding_window", kinds)
        windows = windows if slides else []
    return min([limit, *(int(window) for window in windows if window is not None)])


@dataclass(frozen=True)
class Biases:
    """Which linear layers of a decoder have biases: q, k and v; o; those of the MLP."""

    qkv: bool
    output: bool
    mlp: bool


def decoder_config(
    text: Any, *, tied: bool, biases: Biases | None = None, own_head_dim: bool = True, mrope: bool = False
) -> DecoderConfig:
    """The decoder of ``text_config``.

    Args:
        tied: whether the head is the embedding matrix.
        biases: None where ``text_config`` says it (Llama) or there are none (Mistral).
        own_head_dim: ``text_config`` may give heads a width of their own.
        mrope: positions are time, height and width.

    Raises:
        CheckpointError: an activation or rotary embedding that the graphs do not have.
    """
    require(text.hidden_act in ACTIVATIONS, "decoder activation", text.hidden_act)
    rope = text.rope_parameters
    rope_type = rope["rope_type"]
    require(rope_type in ("default", "linear"), "rotary embedding", rope_type)
    for partial in (rope.get("partial_rotary_factor"), getattr(text, "partial_rotary_factor", None)):
        require(partial in (None, 1), "partial_rotary_factor", partial)
    sections = tuple(int(width) for width in rope.get("mrope_section") or ())
    require(bool(sections) == mrope, "mrope_section", list(sections))
    biases = biases or _named_biases(text)
    return DecoderConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=_head_dim(text, own=own_head_dim),
        vocab_size=text.vocab_size,
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        activation=text.hidden_act,
        attention_bias=biases.qkv,
        output_bias=biases.output,
        mlp_bias=biases.mlp,
        rope_factor=float(rope["factor"]) if rope_type == "linear" else 1.0,
        mrope_section=sections,
        tie_word_embeddings=tied,
    )


def _named_biases(text: Any) -> Biases:
    """Those of Llama and Mistral.  Source: transformers ``models/*/modeling_*.py``."""
    if type(text).model_type == "llama":
        return Biases(text.attention_bias, text.attention_bias, text.mlp_bias)
    return Biases(False, False, False)


def _head_dim(text: Any, *, own: bool) -> int:
    """Heads without a width of their own may have rotary embeddings that would take one."""
    named = getattr(text, "head_dim", None)
    width = int(text.hidden_size // text.num_attention_heads)
    if own:
        return named or width
    require(named in (None, width), "head_dim", named)
    return width


def clip_config(config: Any) -> ClipVisionConfig:
    """The CLIP tower of a LLaVA, up to its feature layer.

    Raises:
        CheckpointError: several feature layers, or features with the CLS token.
    """
    vision, feature_layer = config.vision_config, config.vision_feature_layer
    require(isinstance(feature_layer, int), "vision_feature_layer", feature_layer)
    strategy = config.vision_feature_select_strategy
    require(strategy == "default", "vision_feature_select_strategy", strategy)
    layers = vision.num_hidden_layers
    feature_layers = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
    require(1 <= feature_layers <= layers, "vision_feature_layer", feature_layer)
    require(vision.hidden_act in ACTIVATIONS, "vision activation", vision.hidden_act)
    return ClipVisionConfig(
        image_size=int(vision.image_size),
        patch_size=int(vision.patch_size),
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_heads=vision.num_attention_heads,
        feature_layers=feature_layers,
        layer_norm_eps=vision.layer_norm_eps,
        activation=vision.hidden_act,
        num_channels=vision.num_channels,
    )


def projector_config(config: Any, vision: ClipVisionConfig, decoder: DecoderConfig) -> ProjectorConfig:
    """LLaVA's projector.

    Raises:
        CheckpointError: an activation that the graphs do not have.
    """
    require(config.projector_hidden_act in ACTIVATIONS, "projector activation", config.projector_hidden_act)
    return ProjectorConfig(
        input_size=vision.hidden_size,
        hidden_size=decoder.hidden_size,
        activation=config.projector_hidden_act,
        bias=config.multimodal_projector_bias,
    )
