"""Stage 1 of an image whose crops are selected each within itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Choices, Crop, Stage1Reference


def equal_shares(keep: int, candidates: Sequence[int]) -> list[int]:
    """How many tokens each crop keeps: crops are filled evenly, a crop with fewer tokens than the others get keeps all of its
    own, and what does not divide goes to the first crops that have more.

    Args:
        keep: K; the result sums to ``min(keep, sum(candidates))``.
        candidates: tokens of each crop that the model reads.
    """
    level = max(level for level in range(keep + 1) if sum(min(count, level) for count in candidates) <= keep)
    shares = [min(count, level) for count in candidates]
    unfilled = [crop for crop, count in enumerate(candidates) if count > level]
    for crop in unfilled[: keep - sum(shares)]:
        shares[crop] += 1
    return shares


def select_by_crop(
    stage: Stage1Reference,
    features: Tensor,
    crops: Tensor,
    keep: int,
    tower: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> tuple[list[int], list[Choices | None]]:
    """Stage 1 of one image.

    Args:
        stage: chooses within a crop.
        features: [N, C], the candidates only.
        crops: [N] int64, the crop of each; crops without any candidate count for nothing.
        keep: K of the whole image.
        tower: what else the tower gives of the N tokens, by name.
        settings: of the stage.

    Returns:
        The kept tokens, ascending, and per crop the choices in numbers of the image's tokens, or none where nothing was
        chosen (the crop keeps all of its tokens, or none).
    """
    members = [(crops == crop).nonzero()[:, 0] for crop in range(int(crops.max()) + 1)]
    kept: list[int] = []
    traces: list[Choices | None] = []
    for tokens, share in zip(members, equal_shares(keep, [len(tokens) for tokens in members]), strict=True):
        trace = None
        if 0 < share < len(tokens):
            own = {name: values[tokens] for name, values in tower.items()}
            places = torch.stack([torch.zeros(len(tokens), dtype=torch.int64), torch.arange(len(tokens))], dim=1)
            inside = stage(Crop(features[tokens], own, features, places, (1, len(tokens))), share, **settings)
            trace = Choices(tokens[inside.order], inside.margins)
        traces.append(trace)
        kept += tokens[:share].tolist() if trace is None else trace.order.tolist()
    return sorted(kept), traces
