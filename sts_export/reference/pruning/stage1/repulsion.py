"""Repulsion (docs/method.md, "Stage 1", equations 3 to 5): N visual tokens of width C, of which K are kept."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Choices, Crop

Anchor = Literal["mean", "first", "saliency"]


def stage1(crop: Crop, keep: int, /, *, anchor: Anchor, epsilon: float) -> Choices:
    """As :func:`repulsion_trace`; saliency is the attention of CLS."""
    saliency = crop.tower.get("cls_attention")
    return repulsion_trace(crop.features, keep, anchor=anchor, saliency=saliency, epsilon=epsilon)


STAGE = stage1


def squared_distances(features: Tensor, point: Tensor) -> Tensor:
    """||v_i - point||² (eq. 3): [N, C], [C] -> [N] float32.

    From explicit differences in float64, rounded once: float32 without the cancellation of a Gram matrix, and exactly 0
    for equal rows.
    """
    difference = features.double() - point.double()
    return (difference * difference).sum(dim=1).float()


def _margin(values: Tensor, winner: int) -> float:
    """Relative distance of the smallest value from the next one: [N] float32, index -> >= 0."""
    others = torch.cat([values[:winner], values[winner + 1 :]]).double()
    best = float(values[winner])
    if not len(others) or torch.isinf(others).all():
        return float("inf")
    gap = float(others.min()) - best
    return gap / abs(best) if best else (float("inf") if gap else 0.0)


def repulsion_trace(
    features: Tensor,
    keep: int,
    *,
    anchor: Anchor = "mean",
    saliency: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Choices:
    """The greedy choices of stage 1 (eq. 3-5), of which there are ``min(keep, N)``.

    Args:
        features: [N, C], any float type.
        keep: K >= 1.
        anchor: first token: closest to the ``mean`` of the features, the ``first`` one, or highest ``saliency``.
        saliency: [N], only for that anchor.
        epsilon: added to the squared distance.

    Potentials are summed in float32 in the order of the choices, as float32 distances suggest (docs/method.md); a float64 sum
    could break ties that float32 has.
    """
    count = len(features)
    if keep < 1 or count < 1:
        raise ValueError(f"cannot keep {keep} of {count} tokens")
    features = features.double()
    if not torch.isfinite(features).all():
        raise ValueError("the features are not finite: nothing can be compared")
    if anchor == "mean":
        compared = squared_distances(features, features.mean(dim=0))
    elif anchor == "first":
        compared = torch.arange(count, dtype=torch.float32)
    else:
        if saliency is None or saliency.shape != (count,):
            raise ValueError("the saliency anchor needs one saliency value per token")
        compared = -saliency.float()
    order: list[int] = []
    margins: list[float] = []
    potential = torch.zeros(count, dtype=torch.float32)
    while True:
        chosen = int(torch.argmin(compared))  # torch.argmin returns the first of equal minima
        order.append(chosen)
        margins.append(_margin(compared, chosen))
        if len(order) == min(keep, count):
            return Choices(torch.tensor(order, dtype=torch.int64), torch.tensor(margins, dtype=torch.float64))
        potential = potential + 1.0 / (squared_distances(features, features[chosen]) + epsilon)  # eq. 4
        compared = potential.index_fill(0, torch.tensor(order), float("inf"))  # argmin over i not in S, eq. 5


def repulsion_select(
    features: Tensor,
    keep: int,
    *,
    anchor: Anchor = "mean",
    saliency: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """Stage 1: the tokens kept, ascending: [N, C] -> [min(K, N)] int64. Arguments as in :func:`repulsion_trace`."""
    if keep >= len(features):
        return torch.arange(len(features))
    return repulsion_trace(features, keep, anchor=anchor, saliency=saliency, epsilon=epsilon).order.sort().values
