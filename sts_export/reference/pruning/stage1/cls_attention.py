"""What the CLS token attends to in the tower (FasterVLM)."""

from __future__ import annotations

from sts_export.reference.pruning.ranking import largest
from sts_export.reference.pruning.stage import Choices, Crop


def stage1(crop: Crop, keep: int, /) -> Choices:
    """The K tokens that CLS attends to most."""
    return Choices(*largest(crop.tower["cls_attention"], keep))


STAGE = stage1
