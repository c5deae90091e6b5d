"""CDPruner: a determinantal point process over tokens that differ from each other and matter to the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from sts_export.errors import PromptError
from sts_export.reference.pruning.ranking import best
from sts_export.reference.pruning.stage import Choices, Crop
from sts_export.reference.pruning.vectors import unit

LEAST = 1e-12
SPANNED = 1e-5  # share of a token's own weight squared, below which nothing is left of it


def stage1(crop: Crop, keep: int, /, *, relevance_weight: float) -> Choices:
    """Greedy maximum a posteriori of the DPP with kernel r_i S_ij r_j; margins are relative to the largest r squared.

    Raises:
        PromptError: the prompt has no text.
    """
    if not len(crop.text):
        raise PromptError("the prompt has no text that tokens could be relevant to: write some, or use another method")
    every = relevance(crop.project(crop.picture), crop.text)
    lowest, highest = every.min(), every.max()
    own = (relevance(crop.project(crop.features), crop.text) - lowest) / (highest - lowest + 1e-6)
    weight = 1 - relevance_weight + relevance_weight * own
    directions = unit(crop.features)
    kernel = weight[:, None] * (directions @ directions.T) * weight[None, :]
    gain = weight**2
    scale = max(float(gain.max()), LEAST)
    free = torch.ones(len(gain), dtype=torch.bool)
    order, margins, rows = list[int](), list[float](), torch.zeros(0, len(gain), dtype=torch.float64)
    while len(order) < keep:
        chosen, margin = best(gain.float(), free, scale)
        order.append(chosen)
        margins.append(margin)
        free[chosen] = False
        row = torch.zeros_like(gain)
        if gain[chosen] > LEAST:
            row = (kernel[chosen] - rows[:, chosen] @ rows) / gain[chosen].sqrt()
        rows = torch.cat([rows, row[None]])
        left = gain - row**2
        left = torch.where(left < SPANNED * weight**2, torch.full_like(left, LEAST), left).clamp(min=LEAST)
        gain = torch.where(free, left, gain)
    return Choices(torch.tensor(order), torch.tensor(margins, dtype=torch.float64))


STAGE = stage1


def relevance(projected: Tensor, text: Tensor) -> Tensor:
    """Minus the mean cosine to the text, as the method's code has it: [n, D], [T, D] -> [n] float64."""
    return -(unit(projected) @ unit(text).T).mean(dim=1)
