"""Stage 1 of an image whose crops are selected each within itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import CLS, Choices, Crop, Stage1Reference


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


@dataclass(frozen=True)
class Selection:
    """What stage 1 left of one image, row by row as it enters the prompt.

    Attributes:
        order: [K] the token of each row, or ``CLS``: CLS tokens first, then tokens in reading order, then those that the
            stage puts last.
        features: [K, C], to be projected; others may have been merged into them.
        joined: [N] the token that each one was merged into, -1 for none; None where the stage merges nothing.
        last: how many rows at the end stand behind all others of the picture, newlines included.
    """

    order: list[int]
    features: Tensor
    joined: list[int] | None = None
    last: int = 0

    @property
    def kept(self) -> list[int]:
        """The tokens, ascending, without CLS."""
        return sorted(token for token in self.order if token != CLS)

    @property
    def cls_tokens(self) -> int:
        """How many rows are CLS tokens."""
        return self.order.count(CLS)


@dataclass(frozen=True)
class Request:
    """What a stage may look at beside the tower: see :class:`sts_export.reference.pruning.stage.Crop`."""

    project: Callable[[Tensor], Tensor] = lambda rows: rows
    text: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def select_by_crop(
    stage: Stage1Reference,
    features: Tensor,
    crops: Tensor,
    keep: int,
    tower: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    places: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    alone: bool = True,
    cls: Tensor | None = None,
    request: Request | None = None,
) -> tuple[Selection, list[Choices | None]]:
    """Stage 1 of one image.

    Args:
        stage: chooses within a crop.
        features: [N, C], the candidates only.
        crops: [N] int64, the crop of each; crops without any candidate count for nothing.
        keep: K of the whole image.
        tower: what else the tower gives of the N tokens, by name.
        settings: of the stage.
        places, grid: [N, 2] int64, row and column of each token in its crop's grid of (rows, columns); None: one row of all.
        alone: the model's pictures have one crop.
        cls: [crops, C], the CLS token of each crop.
        request: the rest.

    Returns:
        What is left, and per crop the choices in numbers of the image's tokens, or none where nothing was chosen (the crop
        keeps all of its tokens, or none).
    """
    if places is None or grid is None:
        places, grid = torch.stack([torch.zeros_like(crops), torch.arange(len(crops))], dim=1), (1, len(crops))
    request = Request() if request is None else request
    members = [(crops == crop).nonzero()[:, 0] for crop in range(int(crops.max()) + 1)]
    merged, first, middle, last = features.clone(), list[Tensor](), list[int](), list[int]()
    joined: Tensor | None = None
    traces: list[Choices | None] = []
    for number, (tokens, share) in enumerate(zip(members, equal_shares(keep, [len(own) for own in members]), strict=True)):
        if not 0 < share < len(tokens):
            traces.append(None)
            middle += tokens[:share].tolist()
            continue
        crop = Crop(
            features[tokens],
            {name: values[tokens] for name, values in tower.items()},
            features,
            places[tokens],
            grid,
            number,
            alone,
            request.project,
            request.text,
            request.seed,
            None if cls is None else cls[number],
            request.weights,
        )
        choices = in_numbers_of(tokens, stage(crop, share, **settings))
        traces.append(choices)
        is_last = torch.zeros(share, dtype=torch.bool) if choices.last is None else choices.last
        if cls is not None:
            first += [cls[number]] * int((choices.order == CLS).sum())
        middle += choices.order[~is_last & (choices.order != CLS)].tolist()
        last += choices.order[is_last].tolist()
        if choices.features is not None:
            merged[tokens] = choices.features
        if choices.joined is not None:
            joined = torch.full_like(crops, -1) if joined is None else joined
            joined[tokens] = choices.joined
    order = [*sorted(middle), *sorted(last)]
    rows = torch.cat([*(row[None].to(features.dtype) for row in first), merged[order]])
    return Selection([CLS] * len(first) + order, rows, None if joined is None else joined.tolist(), len(last)), traces


def in_numbers_of(tokens: Tensor, choices: Choices) -> Choices:
    """Choices within a crop, in numbers of the image's tokens: [N of the crop] int64, ascending."""

    def numbered(values: Tensor, nothing: int) -> Tensor:
        return torch.where(values == nothing, nothing, tokens[values.clamp(min=0)])

    joined = None if choices.joined is None else numbered(choices.joined, -1)
    return choices._replace(order=numbered(choices.order, CLS), joined=joined)
