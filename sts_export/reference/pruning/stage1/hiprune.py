"""HiPrune: what a middle layer attends to, its neighbours in the picture, and what the feature layer attends to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sts_export.reference.pruning.ranking import largest
from sts_export.reference.pruning.stage import Choices, Crop


def stage1(crop: Crop, keep: int, /, *, alpha: float) -> Choices:
    """Anchors, then buffers, then registers, within each those that receive most in the feature layer.

    A token's margin is the smaller one of having been an anchor and of having been kept.
    """
    count = len(crop.features)
    anchors, anchor_margins = largest(crop.tower["middle_received_attention"], anchor_count(keep, alpha))
    rank = torch.zeros(count, dtype=torch.int64)
    rank[neighbours(crop.places, anchors)] = 1
    rank[anchors] = 2
    margins = torch.full((count,), float("inf"), dtype=torch.float64)
    margins[anchors] = anchor_margins
    received, kept = crop.tower["received_attention"], list[Tensor]()
    for group in (2, 1, 0):
        members = (rank == group).nonzero()[:, 0]
        own, own_margins = largest(received[members], min(len(members), keep - sum(map(len, kept))))
        kept.append(members[own])
        margins[members[own]] = torch.minimum(margins[members[own]], own_margins)
    order = torch.cat(kept)
    return Choices(order, margins[order])


STAGE = stage1


def anchor_count(keep: int, alpha: float) -> int:
    """K * alpha / 5, rounded half up; the small term undoes the rounding of numbers such as 0.1."""
    return math.floor(keep * alpha / 5 + 0.5 + 1e-6)


def neighbours(places: Tensor, anchors: Tensor) -> list[int]:
    """Tokens left, right, above and below of the anchors: [N, 2] rows and columns, [a] -> tokens, some of them anchors.

    By their places, so that nothing wraps at the end of a row.
    """
    token_at = {(row, column): token for token, (row, column) in enumerate(places.tolist())}
    around = [
        (row + down, column + right)
        for row, column in places[anchors].tolist()
        for down, right in ((0, -1), (0, 1), (-1, 0), (1, 0))
    ]
    return sorted({token_at[place] for place in around if place in token_at})
