"""VisionZip: dominant tokens as they are, and contextual ones that all others are merged into."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sts_export.reference.pruning.merging import merge
from sts_export.reference.pruning.ranking import largest
from sts_export.reference.pruning.stage import CLS, Choices, Crop


def stage1(crop: Crop, keep: int, /, *, score: Literal["cls", "received"]) -> Choices:
    """K = D + C tokens: dominant ones by attention, CLS among them where it scores, and C contextual ones."""
    contextual = contextual_count(keep)
    with_cls = score == "cls" and keep > contextual
    attention = crop.tower["cls_attention" if score == "cls" else "received_attention"]
    dominant, margins = largest(attention, keep - contextual - with_cls)
    is_rest = torch.ones(len(crop.features), dtype=torch.bool)
    is_rest[dominant] = False
    rest = is_rest.nonzero()[:, 0]
    step = max(1, len(rest) // contextual)
    is_target = torch.zeros(len(rest), dtype=torch.bool)
    is_target[torch.arange(contextual) * step] = True
    targets, others = rest[is_target], rest[~is_target]
    features, joined, clear = merge(crop.features, crop.tower["mean_keys"], targets, others, _plus_mean)
    first = torch.tensor([CLS] * with_cls, dtype=torch.int64)
    order = torch.cat([first, dominant, targets])
    every = torch.cat([torch.full((len(first),), float("inf"), dtype=torch.float64), margins, clear])
    last = torch.arange(keep) >= keep - contextual
    return Choices(order, every, features, joined, last if crop.alone else None)


STAGE = stage1


def contextual_count(keep: int) -> int:
    """C = K * 10 / 64, rounded half up, at least 1: 192 = 162 + 30, 128 = 108 + 20, 64 = 54 + 10."""
    return max(1, (10 * keep + 32) // 64)


def _plus_mean(target: Tensor, joining: Tensor) -> Tensor:
    return target + joining.mean(dim=0)
