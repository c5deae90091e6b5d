"""The largest of many values, ties to the lowest index, and how clear it was that these are the largest."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` largest: [N] -> [keep] int64, the largest first.

    Returns:
        The indices, and their margins [keep] float64: how far each lies above the best of the others, relative to itself.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    chosen = order[:keep]
    if keep >= len(scores):
        return chosen, torch.full((len(chosen),), float("inf"), dtype=torch.float64)
    gaps = scores[chosen].double() - scores[order[keep]].double()
    sizes = scores[chosen].double().abs()
    return chosen, torch.where(gaps > 0, gaps / sizes, torch.zeros_like(gaps))


def best(values: Tensor, free: Tensor, scale: float = 1.0) -> tuple[int, float]:
    """The largest of the values that are free, and how far it lies above the next one in units of ``scale``.

    Args:
        values: [N] float32.
        free: [N] bool, at least one is true.
        scale: of the numbers that the values are differences of, which is what rounding is relative to.
    """
    compared = values.masked_fill(~free, float("-inf"))
    winner = int(compared.argmax())  # the first of equal maxima
    others = values[free & (torch.arange(len(values)) != winner)]
    return winner, float(values[winner].double() - others.double().max()) / scale if len(others) else float("inf")
