"""DART: the visual rows least like a few pivots, which are the rows of largest keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Kept, Prefill
from sts_export.reference.pruning.stage2.text_visual import text_after_pictures
from sts_export.reference.pruning.vectors import cosines

OF_EACH_KIND = 4
PIVOTS = 2 * OF_EACH_KIND
_OF_PIVOTS = 3.0  # the score of a visual pivot, which no other row is above


def stage2(prefill: Prefill, keep: int, /) -> Kept:
    """The visual pivots, and what each pivot takes: the rows of lowest cosine to it that are left.

    A row's score is 1 plus how far its cosine to a pivot lies below the largest one that this pivot took, to the pivot where
    that is most: at least 1 for what is kept, at most 1 for the others.  It is the L1 norm of its key where visual pivots are
    all that is kept.
    """
    visual, (_, key) = prefill.visual.nonzero()[:, 0], prefill.own()
    importance = key.double().abs().sum(dim=(0, 2)).float()  # L1 norm, heads concatenated
    visual_pivots = pivots(importance, visual)
    if min(keep, len(visual)) <= len(visual_pivots):
        kept, scores, margin = set(visual_pivots[: min(keep, len(visual))]), importance[visual], math.inf
    else:
        text = text_after_pictures(prefill.text)
        margin = min(gap(importance, visual), gap(importance, text))
        every = sorted([*visual_pivots, *pivots(importance, text)])
        kept, scores = set(visual_pivots), torch.zeros(len(visual))
        scores[torch.isin(visual, torch.tensor(visual_pivots))] = _OF_PIVOTS
        final = prefill.final()
        similarity = cosines(final[visual], final[torch.tensor(every)])  # [V, pivots]
        for number, share in enumerate(shares(keep, len(visual_pivots), len(every))):
            ranked = visual[similarity[:, number].sort(stable=True).indices].tolist()
            taken = [row for row in ranked if row not in kept][: min(share, keep - len(kept))]
            kept.update(taken)
            if taken:
                limit = similarity[visual == taken[-1], number]
                scores = torch.maximum(scores, 1 + limit - similarity[:, number])
    return Kept(torch.isin(visual, torch.tensor(sorted(kept))).nonzero()[:, 0], scores, margin)


STAGE = stage2


def pivots(scores: Tensor, rows: Tensor) -> list[int]:
    """The four of largest score among ``rows``, which ascend, or all there are; the largest first, ties to the lowest."""
    order = scores[rows].sort(descending=True, stable=True).indices
    return rows[order][:OF_EACH_KIND].tolist()


def gap(scores: Tensor, rows: Tensor) -> float:
    """Between the least pivot among ``rows`` and the next row, relative; infinite where all are pivots."""
    ordered = scores[rows].sort(descending=True).values
    return math.inf if len(ordered) <= OF_EACH_KIND else float(1 - ordered[OF_EACH_KIND] / ordered[OF_EACH_KIND - 1])


def shares(keep: int, visual_pivots: int, count: int) -> list[int]:
    """How many rows each of ``count`` pivots takes: K' // 8, and more for the first ones where K' would not be reached."""
    share = keep // max(count, 1) if count < PIVOTS else keep // PIVOTS
    missing = max(0, keep - visual_pivots - count * share)
    return [share + missing // count + (number < missing % count) for number in range(count)]
