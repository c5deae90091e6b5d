"""Tokens at random, by the request's seed alone."""

from __future__ import annotations

from sts_export.reference.pruning.random_keys import random_keys
from sts_export.reference.pruning.stage import Kept, Prefill
from sts_export.reference.pruning.stage2.last_token import top_positions


def stage2(prefill: Prefill, keep: int, /) -> Kept:
    """The K' of largest key; a row's key follows from its number among the request's visual rows."""
    scores = random_keys(prefill.seed, [2, 0], range(int(prefill.visual.sum())))
    return Kept(top_positions(scores, keep), scores)


STAGE = stage2
