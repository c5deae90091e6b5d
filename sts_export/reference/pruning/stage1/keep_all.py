"""Nothing is dropped before the LLM."""

from __future__ import annotations

import torch

from sts_export.reference.pruning.stage import Choices, Crop


def stage1(crop: Crop, keep: int, /) -> Choices:
    """All of them, which is what K is."""
    if keep < len(crop.features):
        raise ValueError(f"{keep} of {len(crop.features)} tokens are not all")
    return Choices(torch.arange(len(crop.features)))


STAGE = stage1
