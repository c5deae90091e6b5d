"""The way of a bundle's or checkpoint's pictures to its vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sts_export.families import image_processors
from sts_export.families.spec import ModelSpec

if TYPE_CHECKING:
    from sts_export.media.prepared import ImagePreparer


def open_images(folder: Path, spec: ModelSpec, settings: Mapping[str, Any] | None = None) -> ImagePreparer:
    """The way of a family's pictures.

    Args:
        settings: of the image processor, in place of the folder's own.

    Raises:
        CheckpointError: its image processor is missing, damaged or another family's.
    """
    from sts_export.media.processor import open_image_processor  # numpy and PIL; who only reads dimensions needs neither

    return spec.tower.images(open_image_processor(folder, image_processors(), settings))
