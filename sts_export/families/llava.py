"""LLaVA-1.5: CLIP tower, two-layer projector, Llama decoder.

Graph parameters carry the names of the public checkpoints (llava-hf/llava-1.5-7b-hf):

    vision_tower.vision_model.*   multi_modal_projector.*   language_model.model.*   language_model.lm_head.weight

Other saves of the same model: transformers 5.x drops ``vision_model.``; transformers 4.52 and later, without conversion,
writes ``model.vision_tower.*``, ``model.multi_modal_projector.*``, ``model.language_model.*`` and ``lm_head.weight``; some
write ``language_model.layers.*`` without ``model.``.
Source: transformers ``models/llava/modeling_llava.py``; defaults from its CLIPVisionConfig and LlamaConfig, since
public config.json files leave out what equals them.
"""

from __future__ import annotations

import re
from typing import Any

from sts_export.errors import CheckpointError
from sts_export.families.spec import Capacities, Graphs, ModelSpec
from sts_export.graphs.configs import DecoderConfig, Dtype, ProjectorConfig, VisionConfig
from sts_export.graphs.contracts import (
    GraphContract,
    llm_lower_contract,
    llm_upper_contract,
    selector_contract,
    vision_encoder_contract,
)
from sts_export.graphs.layers import ACTIVATIONS
from sts_export.graphs.llm_lower import llm_lower
from sts_export.graphs.llm_upper import llm_upper
from sts_export.graphs.selector import selector
from sts_export.graphs.vision_encoder import vision_encoder
from sts_export.pruning import PruningConfig

_VISION = "vision_tower.vision_model"
_PROJECTOR = "multi_modal_projector"
_LLM = "language_model"
# The template of llava-hf/llava-1.5-*: "USER: <image>\n{prompt} ASSISTANT:"; images come before the text of their turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def parse(config: dict[str, Any]) -> ModelSpec:
    """Dimensions from config.json.

    Raises:
        CheckpointError: a part or a setting that the graphs do not express.
    """
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    for name, part in (("vision_config", vision), ("text_config", text)):
        _require(isinstance(part, dict), name, part)
    _require(vision.get("model_type", "clip_vision_model") == "clip_vision_model", "vision tower", vision.get("model_type"))
    _require(text.get("model_type", "llama") == "llama", "language model", text.get("model_type"))
    feature_layer = config.get("vision_feature_layer", -2)
    _require(isinstance(feature_layer, int), "vision_feature_layer", feature_layer)
    strategy = config.get("vision_feature_select_strategy", "default")
    _require(strategy == "default", "vision_feature_select_strategy", strategy)
    try:
        return ModelSpec(
            family="llava",
            vision=_vision(vision, feature_layer),
            projector=_projector(config, vision, text),
            decoder=_decoder(text, tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))),
            image_token_id=int(config.get("image_token_index", config.get("image_token_id", 32000))),
            max_positions=int(text.get("max_position_embeddings", 2048)),
            default_chat_template=CHAT_TEMPLATE,
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"config.json has an impossible value ({error}); download or copy it again") from None


def _require(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise CheckpointError(
            f"unsupported {what} {value!r} in config.json; LLaVA-1.5 checkpoints have a CLIP tower and a Llama decoder"
        )


def _vision(vision: dict[str, Any], feature_layer: int) -> VisionConfig:
    layers = int(vision.get("num_hidden_layers", 12))
    feature_layers = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
    _require(1 <= feature_layers <= layers, "vision_feature_layer", feature_layer)
    activation = vision.get("hidden_act", "quick_gelu")
    _require(activation in ACTIVATIONS, "vision activation", activation)
    return VisionConfig(
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


def _projector(config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> ProjectorConfig:
    activation = config.get("projector_hidden_act", "gelu")
    _require(activation in ACTIVATIONS, "projector activation", activation)
    return ProjectorConfig(
        input_size=int(vision.get("hidden_size", 768)),
        hidden_size=int(text.get("hidden_size", 4096)),
        activation=activation,
        bias=bool(config.get("multimodal_projector_bias", True)),
    )


def _decoder(text: dict[str, Any], *, tied: bool) -> DecoderConfig:
    activation = text.get("hidden_act", "silu")
    _require(activation in ACTIVATIONS, "decoder activation", activation)
    # transformers 5.x: rope_parameters; 4.x: rope_theta and rope_scaling.
    rope = {
        "rope_theta": text.get("rope_theta", 10000.0),
        **(text.get("rope_scaling") or {}),
        **(text.get("rope_parameters") or {}),
    }
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _require(rope_type in ("default", "linear"), "rotary embedding", rope_type)
    width, heads = int(text.get("hidden_size", 4096)), int(text.get("num_attention_heads", 32))
    return DecoderConfig(
        hidden_size=width,
        intermediate_size=int(text.get("intermediate_size", 11008)),
        num_layers=int(text.get("num_hidden_layers", 32)),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or width // heads),
        vocab_size=int(text.get("vocab_size", 32000)),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope["rope_theta"]),
        activation=activation,
        attention_bias=bool(text.get("attention_bias", False)),
        mlp_bias=bool(text.get("mlp_bias", False)),
        rope_factor=float(rope.get("factor", 1.0)) if rope_type == "linear" else 1.0,
        tie_word_embeddings=tied,
    )


def canonical_name(name: str) -> str:
    """A tensor's name in any known save -> its name in the graphs."""
    if name == "lm_head.weight":
        return f"{_LLM}.lm_head.weight"
    for prefix in ("model.language_model.", f"{_LLM}."):
        rest = name.removeprefix(prefix)
        if rest != name and not rest.startswith(("model.", "lm_head.")):
            return f"{_LLM}.model.{rest}"
    name = re.sub(r"^model\.(?=vision_tower\.|multi_modal_projector\.)", "", name)
    if name.startswith("vision_tower.") and not name.startswith(f"{_VISION}."):
        return f"{_VISION}." + name.removeprefix("vision_tower.")
    return name


def unused_reason(name: str, spec: ModelSpec) -> str | None:
    """Why the tensor is in no graph."""
    if name.startswith(f"{_VISION}.post_layernorm."):
        return "vision layers after the feature layer"
    layer = re.match(rf"{re.escape(_VISION)}\.encoder\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= spec.vision.feature_layers:
        return "vision layers after the feature layer"
    if name.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids")):
        return "buffers computed from the configuration"
    if name == f"{_LLM}.lm_head.weight" and spec.decoder.tie_word_embeddings:
        return "head tied to the embedding"
    return None


def build(spec: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> Graphs:
    """The four graphs."""
    decoder, layer = spec.decoder, pruning.prune_layer
    with_saliency = _needs_saliency(spec, pruning)
    models = {
        "vision_encoder": vision_encoder(spec.vision, dtype, prefix=_VISION, with_saliency=with_saliency),
        "selector": selector(
            spec.vision,
            spec.projector,
            dtype,
            prefix=_PROJECTOR,
            keep=pruning.keep_stage1,
            anchor=pruning.anchor,
            epsilon=pruning.epsilon,
        ),
        "llm_lower": llm_lower(
            decoder,
            dtype,
            prefix=f"{_LLM}.model",
            prune_layer=layer,
            keep=pruning.keep_stage2,
            capacity=capacities.lower,
            score_layer=pruning.score_layer,
        ),
        # Under positions=keep the upper part sees the positions of the lower part.
        "llm_upper": llm_upper(
            decoder, dtype, prefix=_LLM, prune_layer=layer, capacity=capacities.upper, positions=capacities.lower
        ),
    }
    return Graphs(models, contracts(spec, pruning, capacities, dtype))


def contracts(spec: ModelSpec, pruning: PruningConfig, capacities: Capacities, dtype: Dtype) -> dict[str, GraphContract]:
    """Inputs and outputs of the four graphs."""
    decoder, layer = spec.decoder, pruning.prune_layer
    with_saliency = _needs_saliency(spec, pruning)
    return {
        "vision_encoder": vision_encoder_contract(spec.vision, dtype, with_saliency=with_saliency),
        "selector": selector_contract(
            spec.vision, decoder.hidden_size, pruning.keep_stage1, dtype, with_saliency=with_saliency
        ),
        "llm_lower": llm_lower_contract(decoder, layer, capacities.lower, dtype),
        "llm_upper": llm_upper_contract(decoder, layer, capacities.upper, dtype),
    }


def _needs_saliency(spec: ModelSpec, pruning: PruningConfig) -> bool:
    return pruning.anchor == "saliency" and pruning.keep_stage1 < spec.vision.num_tokens
