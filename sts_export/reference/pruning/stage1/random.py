"""Tokens at random, by the request's seed alone."""

from __future__ import annotations

from sts_export.reference.pruning.random_keys import random_keys
from sts_export.reference.pruning.ranking import largest
from sts_export.reference.pruning.stage import Choices, Crop


def stage1(crop: Crop, keep: int, /) -> Choices:
    """The K of largest key; a token's key follows from its place, whichever its neighbours are."""
    places = crop.places[:, 0] * crop.grid[1] + crop.places[:, 1]
    chosen, _ = largest(random_keys(crop.seed, [1, crop.number], places.tolist()), keep)
    return Choices(chosen)


STAGE = stage1
