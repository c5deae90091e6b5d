"""LLaVA-NeXT (1.6): LLaVA-1.5's parts, a picture as one whole crop and a grid of tiles, Llama or Mistral decoder.

Graph parameters carry the names of the public checkpoints (llava-hf/llava-v1.6-vicuna-7b-hf): LLaVA-1.5's and
``image_newline``; other saves rename them as LLaVA-1.5's do.
Source: transformers ``models/llava_next/modeling_llava_next.py``.
"""

from __future__ import annotations

from typing import Any

from sts_export.families import llava
from sts_export.families.config import clip_config, decoder_config, max_positions, projector_config
from sts_export.families.family import Family
from sts_export.families.spec import ModelSpec
from sts_export.families.towers.clip import tiled_pictures
from sts_export.families.transformers_config import impossible, read_config, require


def parse(config: dict[str, Any], _processor: dict[str, Any]) -> ModelSpec:
    """Dimensions from config.json.

    Raises:
        CheckpointError: a part or a setting that the graphs do not express.
    """
    llava.check_parts(config, ("llama", "mistral"))
    settings = read_config(config)
    try:
        vision = clip_config(settings)
        decoder = decoder_config(settings.text_config, tied=settings.tie_word_embeddings)
        pinpoints = settings.image_grid_pinpoints
        resolutions = tuple((int(height), int(width)) for height, width in pinpoints)
        require(all(min(resolution) >= vision.image_size for resolution in resolutions), "image_grid_pinpoints", pinpoints)
        pictures = tiled_pictures(vision, resolutions)
        return ModelSpec(
            family="llava_next",
            vision=vision,
            projector=projector_config(settings, vision, decoder),
            decoder=decoder,
            image_token_id=settings.image_token_id,
            image_token="<image>",
            max_positions=max_positions(settings.text_config),
            max_image_tokens=pictures.max_tokens,
            max_image_newlines=pictures.max_newlines,
            tile_resolutions=resolutions,
            default_chat_template=llava.default_chat_template(settings.text_config),
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise impossible(error) from None


FAMILY = Family(
    title="LLaVA-NeXT (CLIP tower, Llama or Mistral decoder)",
    architecture="LlavaNextForConditionalGeneration",
    parse=parse,
    canonical_name=llava.canonical_name,
    unused_reason=llava.unused_reason,
    names=llava.NAMES,
    image_processors={"LlavaNextImageProcessor": "LlavaNextImageProcessorPil"},
    aliases={
        "llava-next-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-next-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    },
)
