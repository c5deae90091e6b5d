"""Qwen2.5-VL: a vision tower for any resolution with a 2 x 2 merger, Qwen2 decoder with M-RoPE.

Graph parameters carry the names of the public checkpoints (Qwen/Qwen2.5-VL-7B-Instruct):

    visual.*   model.embed_tokens, model.layers.*, model.norm   lm_head.weight

transformers 4.52 and later, without conversion, writes ``model.visual.*`` and ``model.language_model.*``.
Source: transformers ``models/qwen2_5_vl``.
"""

from __future__ import annotations

import math
from typing import Any

from sts_export.errors import CheckpointError
from sts_export.families.build import Names
from sts_export.families.config import Biases, decoder_config, max_positions
from sts_export.families.family import Family
from sts_export.families.image_settings import read_image_settings
from sts_export.families.spec import ModelSpec
from sts_export.families.transformers_config import impossible, read_config, require
from sts_export.graphs.configs import ACTIVATIONS
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig

NAMES = Names("visual", "", "model", "lm_head")
# transformers' image processor refuses pictures that are longer for their width.
_MAX_ASPECT = 200
_IMAGE_PROCESSOR = "Qwen2VLImageProcessorPil"
_VISION_THETA = 10000.0
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parse(config: dict[str, Any], processor: dict[str, Any]) -> ModelSpec:
    """Dimensions from config.json; the largest image from the image processor's settings.

    Raises:
        CheckpointError: a part or a setting that the graphs do not express.
    """
    settings = read_config(config)
    try:
        decoder = decoder_config(
            settings.text_config,
            tied=settings.tie_word_embeddings,
            biases=Biases(qkv=True, output=False, mlp=False),
            own_head_dim=False,
            mrope=True,
        )
        vision, tokens = _vision(settings.vision_config, processor)
        require(vision.out_hidden_size == decoder.hidden_size, "out_hidden_size", vision.out_hidden_size)
        return ModelSpec(
            family="qwen2_5_vl",
            vision=vision,
            projector=None,
            decoder=decoder,
            image_token_id=settings.image_token_id,
            image_token="<|image_pad|>",
            max_positions=max_positions(settings.text_config, mixed_layers=True),
            max_image_tokens=tokens,
            default_chat_template=CHAT_TEMPLATE,
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise impossible(error) from None


def _vision(vision: Any, processor: dict[str, Any]) -> tuple[QwenVisionConfig, int]:
    """The tower, and N of the largest image."""
    require(vision.hidden_act in ACTIVATIONS, "vision activation", vision.hidden_act)
    rope = vision.rope_parameters
    require(rope["rope_type"] == "axial", "vision rotary embedding", rope["rope_type"])
    require(rope["rope_theta"] == _VISION_THETA, "vision rope_theta", rope["rope_theta"])
    patch, merge = int(vision.patch_size), vision.spatial_merge_size
    tokens = max_image_tokens(*pixel_limits(processor), patch * merge)
    config = QwenVisionConfig(
        patch_size=patch,
        temporal_patch_size=int(vision.temporal_patch_size),
        merge_size=merge,
        window_patches=vision.window_size // merge // patch * merge,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_heads=vision.num_heads,
        num_layers=vision.depth,
        full_attention_layers=tuple(int(layer) for layer in vision.fullatt_block_indexes),
        out_hidden_size=vision.out_hidden_size,
        activation=vision.hidden_act,
        # Rounding to whole merged patches can nearly double the aspect ratio of a thin strip.
        max_grid_side=min(merge * tokens, math.isqrt(2 * _MAX_ASPECT * tokens * merge**2) + 2 * merge),
        num_channels=vision.in_channels,
    )
    return config, tokens


def pixel_limits(processor: dict[str, Any]) -> tuple[int, int]:
    """Least and largest number of pixels that the image processor makes of a picture.

    Raises:
        CheckpointError: there is no such limit.
        ValueError, TypeError: a limit is no number.
    """
    read = read_image_settings(processor, _IMAGE_PROCESSOR)
    least, most = read.size.shortest_edge, read.size.longest_edge
    if not least or not most or not read.do_resize:
        raise CheckpointError(
            f"the image processor does not limit pixels (shortest_edge {least!r}, longest_edge {most!r}, do_resize "
            f"{read.do_resize!r}); use the processor files of this model"
        )
    return int(least), int(most)


def limit_tokens(processor: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Image processor settings under which pictures have at most ``tokens`` tokens.

    Thin strips may have more all the same; the runtime refuses those.  The lower limit is kept well below the upper one,
    because pictures that are enlarged to it are rounded up.
    """
    least, most = pixel_limits(processor)
    read = read_image_settings(processor, _IMAGE_PROCESSOR)
    most = min(most, tokens * (read.patch_size * read.merge_size) ** 2)
    other = {key: value for key, value in processor.items() if key not in ("min_pixels", "max_pixels")}
    return {**other, "size": {"shortest_edge": min(least, most // 4), "longest_edge": most}}


def max_image_tokens(least: int, most: int, side: int) -> int:
    """N of the largest image that transformers' smart_resize makes within these numbers of pixels.

    A strip made smaller keeps at least one token across, and a picture made larger is rounded up on both sides: either may
    have more tokens than ``most`` pixels hold.
    """
    enlarged = least / side**2
    rounded_up = enlarged + math.sqrt(enlarged) * (math.sqrt(_MAX_ASPECT) + 1 / math.sqrt(_MAX_ASPECT)) + 1
    return max(most // side**2, math.isqrt(_MAX_ASPECT * most) // side, math.ceil(rounded_up), 1)


def canonical_name(name: str) -> str:
    """A tensor's name in any known save -> its name in the graphs."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name


def unused_reason(name: str, spec: ModelSpec) -> str | None:
    """Why the tensor is in no graph."""
    if name.endswith((".rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")):
        return "buffers computed from the configuration"
    if name == "lm_head.weight" and spec.decoder.tie_word_embeddings:
        return "head equal to the embedding it is tied to"
    return None


FAMILY = Family(
    title="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    parse=parse,
    canonical_name=canonical_name,
    unused_reason=unused_reason,
    names=NAMES,
    image_processors={"Qwen2VLImageProcessor": _IMAGE_PROCESSOR, "Qwen2_5_VLImageProcessor": _IMAGE_PROCESSOR},
    aliases={
        "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    },
    limit_tokens=limit_tokens,
)
