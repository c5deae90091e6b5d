"""LLaVA-1.5: CLIP tower, two-layer projector, Llama decoder.

Graph parameters carry the names of the public checkpoints (llava-hf/llava-1.5-7b-hf):

    vision_tower.vision_model.*   multi_modal_projector.*   language_model.model.*   language_model.lm_head.weight

Other saves of the same model: transformers 5.x drops ``vision_model.``; transformers 4.52 and later, without conversion,
writes ``model.vision_tower.*``, ``model.multi_modal_projector.*``, ``model.language_model.*`` and ``lm_head.weight``; some
write ``language_model.layers.*`` without ``model.``.
Source: transformers ``models/llava/modeling_llava.py``.
"""

from __future__ import annotations

import re
from typing import Any

from sts_export.families.build import Names
from sts_export.families.config import clip_config, decoder_config, max_positions, projector_config
from sts_export.families.family import Family
from sts_export.families.spec import ModelSpec
from sts_export.families.transformers_config import impossible, part, read_config, require

NAMES = Names("vision_tower.vision_model", "multi_modal_projector", "language_model.model", "language_model.lm_head")
# The template of llava-hf/llava-1.5-*: "USER: <image>\n{prompt} ASSISTANT:"; images come before the text of their turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


# Vicuna's tokenizer is Llama 2's with a few tokens more; later Llamas have another and other templates.
_VICUNA_VOCABULARY = 1 << 15


def default_chat_template(text: Any) -> str:
    """Vicuna's template for decoders that may be one; none for others, which were trained on templates of their own.

    Args:
        text: transformers' configuration of the decoder.
    """
    return CHAT_TEMPLATE if type(text).model_type == "llama" and text.vocab_size <= _VICUNA_VOCABULARY else ""


def parse(config: dict[str, Any], _processor: dict[str, Any]) -> ModelSpec:
    """Dimensions from config.json.

    Raises:
        CheckpointError: a part or a setting that the graphs do not express.
    """
    check_parts(config, ("llama",))
    settings = read_config(config)
    try:
        vision = clip_config(settings)
        decoder = decoder_config(settings.text_config, tied=settings.tie_word_embeddings)
        return ModelSpec(
            family="llava",
            vision=vision,
            projector=projector_config(settings, vision, decoder),
            decoder=decoder,
            image_token_id=settings.image_token_id,
            image_token="<image>",
            max_positions=max_positions(settings.text_config),
            max_image_tokens=vision.num_patches,
            default_chat_template=default_chat_template(settings.text_config),
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise impossible(error) from None


def check_parts(config: dict[str, Any], decoders: tuple[str, ...]) -> None:
    """config.json names a CLIP tower and one of these decoders, or nothing.

    Raises:
        CheckpointError: it names others.
    """
    text, vision = (part(config, name).get("model_type") for name in ("text_config", "vision_config"))
    require(text is None or text in decoders, "language model", text)
    require(vision in (None, "clip_vision_model"), "vision tower", vision)


def canonical_name(name: str) -> str:
    """A tensor's name in any known save -> its name in the graphs."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    for prefix in ("model.language_model.", "language_model."):
        rest = name.removeprefix(prefix)
        if rest != name and not rest.startswith(("model.", "lm_head.")):
            return f"language_model.model.{rest}"
    name = re.sub(r"^model\.(?=vision_tower\.|multi_modal_projector\.|image_newline$)", "", name)
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name


def unused_reason(name: str, spec: ModelSpec) -> str | None:
    """Why the tensor is in no graph."""
    if name.startswith(f"{NAMES.vision}.post_layernorm."):
        return "vision layers after the feature layer"
    layer = re.match(rf"{re.escape(NAMES.vision)}\.encoder\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= spec.tower.num_layers:
        return "vision layers after the feature layer"
    if name.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids")):
        return "buffers computed from the configuration"
    if name == f"{NAMES.head}.weight" and spec.decoder.tie_word_embeddings:
        return "head equal to the embedding it is tied to"
    return None


FAMILY = Family(
    title="LLaVA-1.5 (CLIP tower, Llama decoder)",
    architecture="LlavaForConditionalGeneration",
    parse=parse,
    canonical_name=canonical_name,
    unused_reason=unused_reason,
    names=NAMES,
    image_processors={"CLIPImageProcessor": "CLIPImageProcessorPil"},
    aliases={
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    },
)
