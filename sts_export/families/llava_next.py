"""LLaVA-NeXT (1.6): LLaVA-1.5's parts, a picture as one whole crop and a grid of tiles, Llama or Mistral decoder.

Graph parameters carry the names of the public checkpoints (llava-hf/llava-v1.6-vicuna-7b-hf): LLaVA-1.5's and
``image_newline``; other saves rename them as LLaVA-1.5's do.
Source: transformers ``models/llava_next/modeling_llava_next.py``.
"""

from __future__ import annotations

from typing import Any

from sts_export.families import llava
from sts_export.families.config import (
    LLAMA,
    MISTRAL,
    clip_config,
    decoder_config,
    impossible,
    is_tied,
    max_positions,
    part,
    projector_config,
    require,
)
from sts_export.families.spec import ModelSpec

NAMES = llava.NAMES
canonical_name = llava.canonical_name
unused_reason = llava.unused_reason
check_processor = llava.check_processor

_DECODERS = {"llama": LLAMA, "mistral": MISTRAL}
# Of llava-hf/llava-v1.6-*, in pixels (height, width).
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def parse(config: dict[str, Any], _processor: dict[str, Any]) -> ModelSpec:
    """Dimensions from config.json.

    Raises:
        CheckpointError: a part or a setting that the graphs do not express.
    """
    text = part(config, "text_config")
    kind = text.get("model_type", "llama")
    require(isinstance(kind, str) and kind in _DECODERS, "language model", kind)
    try:
        vision = clip_config(config, part(config, "vision_config"))
        decoder = decoder_config(text, _DECODERS[kind], tied=is_tied(config, text))
        pinpoints = config.get("image_grid_pinpoints") or _PINPOINTS
        resolutions = tuple((int(height), int(width)) for height, width in pinpoints)
        tiles = [(height // vision.image_size, width // vision.image_size) for height, width in resolutions]
        require(all(down > 0 and across > 0 for down, across in tiles), "image_grid_pinpoints", pinpoints)
        return ModelSpec(
            family="llava_next",
            vision=vision,
            projector=projector_config(config, vision, decoder),
            decoder=decoder,
            image_token_id=llava.image_token_id(config),
            image_token="<image>",
            max_positions=max_positions(text, _DECODERS[kind]),
            max_image_tokens=vision.num_patches * (1 + max(down * across for down, across in tiles)),
            max_image_newlines=vision.grid_side * max(down for down, _ in tiles),
            tile_resolutions=resolutions,
            default_chat_template=llava.CHAT_TEMPLATE,
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise impossible(error) from None
