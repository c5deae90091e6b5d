"""LLaVA-NeXT (1.6): LLaVA-1.5's parts, a picture as one whole crop and a grid of tiles, Llama or Mistral decoder.

Graph parameters carry the names of the public checkpoints (llava-hf/llava-v1.6-vicuna-7b-hf): LLaVA-1.5's and
``image_newline``; other saves rename them as LLaVA-1.5's do.
Source: transformers ``models/llava_next/modeling_llava_next.py``.
"""

from __future__ import annotations

from typing import Any

from sts_export.checkpoints.checkpoint import Checkpoint
from sts_export.families import llava
from sts_export.families.config import clip_config, decoder_config, max_positions, projector_config
from sts_export.families.image_settings import check_crop, read_image_settings
from sts_export.families.spec import ModelSpec
from sts_export.families.transformers_config import impossible, read_config, require
from sts_export.graphs.configs import ClipVisionConfig

NAMES = llava.NAMES
canonical_name = llava.canonical_name
unused_reason = llava.unused_reason


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
        tiles = [(height // vision.image_size, width // vision.image_size) for height, width in resolutions]
        require(all(down > 0 and across > 0 for down, across in tiles), "image_grid_pinpoints", pinpoints)
        return ModelSpec(
            family="llava_next",
            vision=vision,
            projector=projector_config(settings, vision, decoder),
            decoder=decoder,
            image_token_id=settings.image_token_id,
            image_token="<image>",
            max_positions=max_positions(settings.text_config),
            max_image_tokens=vision.num_patches * (1 + max(down * across for down, across in tiles)),
            max_image_newlines=vision.grid_side * max(down for down, _ in tiles),
            tile_resolutions=resolutions,
            default_chat_template=llava.default_chat_template(settings.text_config),
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise impossible(error) from None


def check_processor(checkpoint: Checkpoint, settings: dict[str, Any], spec: ModelSpec) -> None:
    """The CLIP tower takes crops of one size.

    Raises:
        CheckpointError: the image processor makes others.
    """
    assert isinstance(spec.vision, ClipVisionConfig)
    check_crop(checkpoint, read_image_settings(settings, "LlavaNextImageProcessorPil"), spec.vision.image_size)
