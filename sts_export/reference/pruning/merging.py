"""Tokens that become part of others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sts_export.reference.pruning.vectors import cosines, nearest


def merge(
    features: Tensor, looked_at: Tensor, kept: Tensor, dropped: Tensor, combine: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Each dropped token joins the kept one of largest cosine, ties to the lowest.

    Args:
        features: [N, C]; looked_at: [N, D], what is compared.
        kept, dropped: [k] and [d] int64, ascending, k >= 1.
        combine: a kept token [C] float64 and those that joined it [n, C] float64, n >= 1 -> [C] in its place.

    Returns:
        features with the kept tokens replaced, of the same type; joined [N] int64, -1 for tokens that joined none; margins
        [k] float64, how clear it was which tokens join each kept one.
    """
    merged, joined = features.clone(), torch.full((len(features),), -1, dtype=torch.int64)
    margins = torch.full((len(kept),), float("inf"), dtype=torch.float64)
    if not len(dropped):
        return merged, joined, margins
    target, clear = nearest(cosines(looked_at[dropped], looked_at[kept]))
    joined[dropped] = kept[target]
    for number in sorted(set(target.tolist())):
        own = target == number
        joining = features[dropped[own]].double()
        merged[kept[number]] = combine(features[kept[number]].double(), joining).to(features.dtype)
        margins[number] = clear[own].min()
    return merged, joined, margins
