"""Nothing is dropped before the LLM."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Choices


def stage1(features: Tensor, keep: int, _tower: Mapping[str, Tensor], /) -> Choices:
    """All of them, which is what K is."""
    if keep < len(features):
        raise ValueError(f"{keep} of {len(features)} tokens are not all")
    return Choices(torch.arange(len(features)))


STAGE = stage1
