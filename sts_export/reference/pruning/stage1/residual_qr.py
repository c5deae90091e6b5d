"""STAR-Pro: pivoted QR, the token of which most lies outside what the chosen ones span."""

from __future__ import annotations

import torch
from torch import Tensor

from sts_export.reference.pruning.ranking import best
from sts_export.reference.pruning.stage import Choices, Crop

SPANNED = 1e-8  # squared norms of residuals; below it nothing is left to tell tokens apart


def stage1(crop: Crop, keep: int, /) -> Choices:
    """The largest residual again and again; once none is left, the largest original norm.

    Residuals are float64 and compared as float32. Margins are relative to the largest squared norm, of which they are
    remainders.
    """
    residual = crop.features.to(torch.float64, copy=True)
    norms = _squared(residual)
    scale = max(float(norms.max()), torch.finfo(torch.float64).tiny)
    free = torch.ones(len(norms), dtype=torch.bool)
    order, margins, spanned = list[int](), list[float](), False
    while len(order) < keep:
        left = _squared(residual)
        spanned = spanned or float(left[free].max()) <= SPANNED
        chosen, margin = best(norms if spanned else left, free, scale)
        order.append(chosen)
        margins.append(margin)
        free[chosen] = False
        if not spanned:
            direction = residual[chosen] / residual[chosen].norm()
            residual.addr_(residual @ direction, direction, alpha=-1)
    return Choices(torch.tensor(order), torch.tensor(margins, dtype=torch.float64))


STAGE = stage1


def _squared(rows: Tensor) -> Tensor:
    """[N, C] float64 -> [N] float32, squared norms."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return (norms * norms).float()
