"""Qwen2.5-VL: a vision tower for any resolution with a 2 x 2 merger, Qwen2 decoder with M-RoPE.

Graph parameters carry the names of the public checkpoints (Qwen/Qwen2.5-VL-7B-Instruct):

    visual.*   model.embed_tokens, model.layers.*, model.norm   lm_head.weight

transformers 4.52 and later, without conversion, writes ``model.visual.*`` and ``model.language_model.*``.
Source: transformers ``models/qwen2_5_vl``.
"""

from __future__ import annotations

import math
from typing import Any

from sts_export.checkpoint import Checkpoint, check_patches
from sts_export.families.build import Names
from sts_export.families.config import QWEN2_5_VL, decoder_config, impossible, is_tied, max_positions, part, require
from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import ACTIVATIONS, QwenVisionConfig

NAMES = Names("visual", "", "model", "lm_head")
# transformers' image processor refuses pictures that are longer for their width.
_MAX_ASPECT = 200
# transformers' image processor assumes these where a checkpoint does not say.
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 28 * 28 * 1280
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
    # transformers 4.x writes the decoder's settings beside the vision tower's, 5.x into text_config.
    text = {**config, **part(config, "text_config")}
    try:
        decoder = decoder_config(text, QWEN2_5_VL, tied=is_tied(config, text), mrope=True)
        vision, tokens = _vision(part(config, "vision_config"), processor)
        require(vision.out_hidden_size == decoder.hidden_size, "out_hidden_size", vision.out_hidden_size)
        return ModelSpec(
            family="qwen2_5_vl",
            vision=vision,
            projector=None,
            decoder=decoder,
            image_token_id=int(config.get("image_token_id", 151655)),
            image_token="<|image_pad|>",
            max_positions=max_positions({"use_sliding_window": False, **text}, QWEN2_5_VL),
            max_image_tokens=tokens,
            default_chat_template=CHAT_TEMPLATE,
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise impossible(error) from None


def _vision(vision: dict[str, Any], processor: dict[str, Any]) -> tuple[QwenVisionConfig, int]:
    """The tower, and N of the largest image."""
    activation = vision.get("hidden_act", "silu")
    require(activation in ACTIVATIONS, "vision activation", activation)
    rope = part(vision, "rope_parameters")
    require(rope.get("rope_type", "default") in ("axial", "default"), "vision rotary embedding", rope.get("rope_type"))
    require(rope.get("rope_theta", _VISION_THETA) == _VISION_THETA, "vision rope_theta", rope.get("rope_theta"))
    patch, merge = int(vision.get("patch_size", 14)), int(vision.get("spatial_merge_size", 2))
    tokens = max_image_tokens(*pixel_limits(processor), patch * merge)
    config = QwenVisionConfig(
        patch_size=patch,
        temporal_patch_size=int(vision.get("temporal_patch_size", 2)),
        merge_size=merge,
        window_patches=int(vision.get("window_size", 112)) // merge // patch * merge,
        hidden_size=int(vision.get("hidden_size", 3584)),
        intermediate_size=int(vision.get("intermediate_size", 3420)),
        num_heads=int(vision.get("num_heads", 16)),
        num_layers=int(vision.get("depth", 32)),
        full_attention_layers=tuple(int(layer) for layer in vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
        out_hidden_size=int(vision.get("out_hidden_size", 3584)),
        activation=activation,
        # Rounding to whole merged patches can nearly double the aspect ratio of a thin strip.
        max_grid_side=min(merge * tokens, math.isqrt(2 * _MAX_ASPECT * tokens * merge**2) + 2 * merge),
        num_channels=int(vision.get("in_channels", vision.get("in_chans", 3))),
    )
    return config, tokens


def pixel_limits(processor: dict[str, Any]) -> tuple[int, int]:
    """Least and largest number of pixels that the image processor makes of a picture."""
    edges = part(processor, "size")
    least = processor.get("min_pixels") or edges.get("shortest_edge") or _MIN_PIXELS
    most = processor.get("max_pixels") or edges.get("longest_edge") or _MAX_PIXELS
    return int(least), int(most)


def check_processor(checkpoint: Checkpoint, settings: dict[str, Any], spec: ModelSpec) -> None:
    """The tower takes patches of one size, merged in squares of one size.

    Raises:
        CheckpointError: the image processor cuts others.
    """
    vision = spec.vision
    assert isinstance(vision, QwenVisionConfig)
    sizes = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size}
    check_patches(checkpoint, settings, {**sizes, "merge_size": vision.merge_size})


def limit_image_tokens(processor: dict[str, Any], tokens: int, spec: ModelSpec) -> dict[str, Any]:
    """:func:`limit_tokens` with the side of this model's tokens."""
    assert isinstance(spec.vision, QwenVisionConfig)
    return limit_tokens(processor, tokens, spec.vision.patch_size * spec.vision.merge_size)


def limit_tokens(processor: dict[str, Any], tokens: int, side: int) -> dict[str, Any]:
    """Image processor settings under which pictures have at most ``tokens`` tokens of ``side`` pixels.

    Thin strips may have more all the same; the runtime refuses those.  The lower limit is kept well below the upper one,
    because pictures that are enlarged to it are rounded up.
    """
    least, most = pixel_limits(processor)
    most = min(most, tokens * side**2)
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
        return "head tied to the embedding"
    return None
