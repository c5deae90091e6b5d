"""Directions of vectors: cosines in float64, rounded once, so that equal ones are equal in float32, too."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_NORM = 1e-12


def unit(rows: Tensor) -> Tensor:
    """[n, C] any float type -> [n, C] float64, each divided by its norm; a row of zeros stays one."""
    rows = rows.double()
    norms: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / norms.clamp(min=LEAST_NORM)


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """[n, C], [m, C] -> [n, m] float32."""
    return (unit(rows) @ unit(others).T).float()


def nearest(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar column of each row, ties to the lowest: [n, m] float32, m >= 1.

    Returns:
        [n] int64, and [n] float64: how much more similar it is than the next one; infinite with one column.
    """
    best = similarity.argmax(dim=1)  # the first of equal maxima
    if similarity.shape[1] == 1:
        return best, torch.full((len(similarity),), float("inf"), dtype=torch.float64)
    two = similarity.double().topk(2, dim=1).values
    return best, two[:, 0] - two[:, 1]
