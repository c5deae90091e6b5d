"""VScan before the LLM: what CLS attends to, early in each window and late everywhere; the others are merged into these."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sts_export.reference.pruning.merging import merge
from sts_export.reference.pruning.ranking import largest
from sts_export.reference.pruning.stage import Choices, Crop

SIDE = 4  # windows a side


def stage1(crop: Crop, keep: int, /, *, score: Literal["cls", "received"]) -> Choices:
    """Half of K from the windows, the rest from the whole crop; every dropped token joins its most similar kept one."""
    early = crop.tower["early_cls_attention" if score == "cls" else "early_received_attention"]
    late = crop.tower["cls_attention" if score == "cls" else "received_attention"]
    share = keep // 2 // SIDE**2
    window = windows(crop.places, crop.grid)
    margins = torch.full((len(late),), float("inf"), dtype=torch.float64)
    is_kept = torch.zeros(len(late), dtype=torch.bool)
    order = list[Tensor]()
    for number in range(SIDE**2):
        members = (window == number).nonzero()[:, 0]
        own, own_margins = largest(early[members], min(share, len(members)))
        order.append(members[own])
        margins[members[own]] = own_margins
        is_kept[members[own]] = True
    others = (~is_kept).nonzero()[:, 0]
    own, own_margins = largest(late[others], keep - int(is_kept.sum()))
    order.append(others[own])
    margins[others[own]] = own_margins
    is_kept[others[own]] = True

    kept, dropped = is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]
    features, joined, clear = merge(crop.features, crop.features, kept, dropped, _mean_of_all)
    margins[kept] = torch.minimum(margins[kept], clear)
    chosen = torch.cat(order)
    return Choices(chosen, margins[chosen], features, joined)


STAGE = stage1


def windows(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """The window of each token: [N, 2] rows and columns in a grid of (rows, columns) -> [N] int64 below 16."""
    rows, columns = grid
    return places[:, 0] * SIDE // rows * SIDE + places[:, 1] * SIDE // columns


def _mean_of_all(kept: Tensor, joining: Tensor) -> Tensor:
    return (kept + joining.sum(dim=0)) / (1 + len(joining))
