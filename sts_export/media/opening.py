"""How pictures become visual tokens, one file per way of doing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import QwenVisionConfig
from sts_export.media.anyres import AnyresImages
from sts_export.media.fixed import FixedImages
from sts_export.media.prepared import ImagePreparer
from sts_export.media.processor import open_image_processor
from sts_export.media.qwen import QwenImages


def open_images(folder: Path, spec: ModelSpec, settings: Mapping[str, Any] | None = None) -> ImagePreparer:
    """The way of a bundle's or checkpoint's family.

    Args:
        settings: of the image processor, in place of the folder's own.

    Raises:
        CheckpointError: its image processor is missing, damaged or another family's.
    """
    processor = open_image_processor(folder, settings)
    if isinstance(spec.vision, QwenVisionConfig):
        return QwenImages(processor, spec.vision, spec.max_image_tokens)
    if spec.tile_resolutions:
        return AnyresImages(processor, spec.vision, spec.tile_resolutions)
    return FixedImages(processor, spec.vision)
