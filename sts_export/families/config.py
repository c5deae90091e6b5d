"""Parts of config.json that families share: a Llama-style decoder, a CLIP tower, LLaVA's projector.

Defaults are those of transformers' configuration classes, since public config.json files leave out what equals them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sts_export.errors import CheckpointError
from sts_export.graphs.configs import ACTIVATIONS, ClipVisionConfig, DecoderConfig, ProjectorConfig


@dataclass(frozen=True)
class TextDefaults:
    """What transformers assumes of a decoder where config.json is silent.

    ``qkv_bias`` None: as ``attention_bias`` says, and then the output projection has one too.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    sliding_window: int | None = None
    qkv_bias: bool | None = None


LLAMA = TextDefaults(4096, 11008, 32, 32, None, 32000, 2048, 1e-6, 10000.0)
MISTRAL = TextDefaults(4096, 14336, 32, 32, 8, 32000, 131072, 1e-6, 10000.0, sliding_window=4096, qkv_bias=False)
QWEN2_5_VL = TextDefaults(8192, 29568, 80, 64, 8, 152064, 32768, 1e-5, 1000000.0, qkv_bias=True)


def part(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A nested object of config.json, empty where it is missing."""
    value = config.get(name) or {}
    require(isinstance(value, dict), name, value)
    return dict(value)


def require(condition: bool, what: str, value: object) -> None:
    """Raises CheckpointError for a setting that the graphs do not express."""
    if not condition:
        raise CheckpointError(
            f"unsupported {what} {value!r} in config.json; sts-export exports LLaVA-1.5 and LLaVA-NeXT (CLIP tower, Llama or "
            "Mistral decoder) and Qwen2.5-VL"
        )


def max_positions(text: dict[str, Any], defaults: TextDefaults) -> int:
    """Rows that the decoder attends to rightly: its position limit, or its attention window where that is smaller."""
    limit = int(text.get("max_position_embeddings", defaults.max_positions))
    window = text.get("sliding_window", defaults.sliding_window)
    if window is None or not text.get("use_sliding_window", True):
        return limit
    return min(limit, int(window))


def decoder_config(text: dict[str, Any], defaults: TextDefaults, *, tied: bool, mrope: bool = False) -> DecoderConfig:
    """The decoder of ``text_config``.

    Raises:
        CheckpointError: an activation or rotary embedding that the graphs do not have.
    """
    activation = text.get("hidden_act", "silu")
    require(activation in ACTIVATIONS, "decoder activation", activation)
    # transformers 5.x: rope_parameters; 4.x: rope_theta and rope_scaling.
    rope = {
        "rope_theta": text.get("rope_theta", defaults.rope_theta),
        **(text.get("rope_scaling") or {}),
        **(text.get("rope_parameters") or {}),
    }
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    require(rope_type in ("default", "linear", *(("mrope",) if mrope else ())), "rotary embedding", rope_type)
    sections = tuple(int(width) for width in rope.get("mrope_section") or ())
    require(bool(sections) == mrope, "mrope_section", list(sections))
    width, heads = int(text.get("hidden_size", defaults.hidden_size)), int(text.get("num_attention_heads", defaults.num_heads))
    attention_bias = bool(text.get("attention_bias", False))
    return DecoderConfig(
        hidden_size=width,
        intermediate_size=int(text.get("intermediate_size", defaults.intermediate_size)),
        num_layers=int(text.get("num_hidden_layers", defaults.num_layers)),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads", defaults.num_kv_heads) or heads),
        head_dim=int(text.get("head_dim") or width // heads),
        vocab_size=int(text.get("vocab_size", defaults.vocab_size)),
        rms_norm_eps=float(text.get("rms_norm_eps", defaults.rms_norm_eps)),
        rope_theta=float(rope["rope_theta"]),
        activation=activation,
        attention_bias=attention_bias if defaults.qkv_bias is None else defaults.qkv_bias,
        output_bias=attention_bias if defaults.qkv_bias is None else False,
        mlp_bias=bool(text.get("mlp_bias", False)) if defaults is LLAMA else False,
        rope_factor=float(rope.get("factor", 1.0)) if rope_type == "linear" else 1.0,
        mrope_section=sections,
        tie_word_embeddings=tied,
    )


def clip_config(config: dict[str, Any], vision: dict[str, Any]) -> ClipVisionConfig:
    """The CLIP tower of a LLaVA, up to its feature layer.

    Raises:
        CheckpointError: another tower, several feature layers, or features with the CLS token.
    """
    require(vision.get("model_type", "clip_vision_model") == "clip_vision_model", "vision tower", vision.get("model_type"))
    feature_layer = config.get("vision_feature_layer", -2)
    require(isinstance(feature_layer, int), "vision_feature_layer", feature_layer)
    strategy = config.get("vision_feature_select_strategy", "default")
    require(strategy == "default", "vision_feature_select_strategy", strategy)
    layers = int(vision.get("num_hidden_layers", 12))
    feature_layers = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
    require(1 <= feature_layers <= layers, "vision_feature_layer", feature_layer)
    activation = vision.get("hidden_act", "quick_gelu")
    require(activation in ACTIVATIONS, "vision activation", activation)
    return ClipVisionConfig(
        image_size=int(vision.get("image_size", 224)),
        patch_size=int(vision.get("patch_size", 32)),
        hidden_size=int(vision.get("hidden_size", 768)),
        intermediate_size=int(vision.get("intermediate_size", 3072)),
        num_heads=int(vision.get("num_attention_heads", 12)),
        feature_layers=feature_layers,
        layer_norm_eps=float(vision.get("layer_norm_eps", 1e-5)),
        activation=activation,
        num_channels=int(vision.get("num_channels", 3)),
    )


def projector_config(config: dict[str, Any], vision: ClipVisionConfig, decoder: DecoderConfig) -> ProjectorConfig:
    """LLaVA's projector.

    Raises:
        CheckpointError: an activation that the graphs do not have.
    """
    activation = config.get("projector_hidden_act", "gelu")
    require(activation in ACTIVATIONS, "projector activation", activation)
    return ProjectorConfig(
        input_size=vision.hidden_size,
        hidden_size=decoder.hidden_size,
        activation=activation,
        bias=bool(config.get("multimodal_projector_bias", True)),
    )


def is_tied(config: dict[str, Any], text: dict[str, Any]) -> bool:
    """Whether the head shares the embedding matrix; the outer setting goes before the decoder's own."""
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))


def impossible(error: Exception) -> CheckpointError:
    """For values of config.json that no model has."""
    return CheckpointError(f"config.json has an impossible value ({error}); download or copy it again")
