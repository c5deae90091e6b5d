"""What each token receives in the tower: its column mean of the attention matrix (STAR)."""

from __future__ import annotations

from sts_export.reference.pruning.ranking import largest
from sts_export.reference.pruning.stage import Choices, Crop


def stage1(crop: Crop, keep: int, /) -> Choices:
    """The K tokens that receive most."""
    return Choices(*largest(crop.tower["received_attention"], keep))


STAGE = stage1
