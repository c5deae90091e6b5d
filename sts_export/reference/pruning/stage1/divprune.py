"""DivPrune: the token that is farthest from its nearest chosen one, by cosine, as the LLM takes tokens."""

from __future__ import annotations

import torch

from sts_export.reference.pruning.ranking import best
from sts_export.reference.pruning.stage import Choices, Crop
from sts_export.reference.pruning.vectors import cosines


def stage1(crop: Crop, keep: int, /) -> Choices:
    """First the token whose nearest neighbour is farthest, then max-min; distances are 1 - cosine, float32."""
    projected = crop.project(crop.features)
    distance = 1 - cosines(projected, projected)
    count = len(distance)
    itself = torch.eye(count, dtype=torch.bool)
    to_chosen = distance.masked_fill(itself, float("inf")).min(dim=1).values
    free = torch.ones(count, dtype=torch.bool)
    order, margins = list[int](), list[float]()
    while len(order) < keep:
        chosen, margin = best(to_chosen, free)
        order.append(chosen)
        margins.append(margin)
        free[chosen] = False
        to_chosen = distance[:, chosen] if len(order) == 1 else torch.minimum(to_chosen, distance[:, chosen])
    return Choices(torch.tensor(order), torch.tensor(margins, dtype=torch.float64))


STAGE = stage1
