"""DART: the visual rows least like a few pivots, which are the rows of largest keys."""

from __future__ import annotations

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Kept, Prefill
from sts_export.reference.pruning.stage2.text_visual import text_after_pictures
from sts_export.reference.pruning.vectors import cosines

OF_EACH_KIND = 4
PIVOTS = 2 * OF_EACH_KIND


def stage2(prefill: Prefill, keep: int, /) -> Kept:
    """The visual pivots, and what each pivot takes: the rows of lowest cosine to it that are left."""
    visual, (_, key) = prefill.visual.nonzero()[:, 0], prefill.own()
    scores = key.double().abs().sum(dim=(0, 2)).float()  # L1 norm, heads concatenated
    visual_pivots = pivots(scores, visual)
    if min(keep, len(visual)) <= len(visual_pivots):
        kept = set(visual_pivots[: min(keep, len(visual))])
    else:
        every = sorted([*visual_pivots, *pivots(scores, text_after_pictures(prefill.text))])
        kept = set(visual_pivots)
        final = prefill.final()
        similarity = cosines(final[visual], final[torch.tensor(every)])  # [V, pivots]
        for number, share in enumerate(shares(keep, len(visual_pivots), len(every))):
            ranked = visual[similarity[:, number].sort(stable=True).indices].tolist()
            kept.update([row for row in ranked if row not in kept][: min(share, keep - len(kept))])
    return Kept(torch.isin(visual, torch.tensor(sorted(kept))).nonzero()[:, 0])


STAGE = stage2


def pivots(scores: Tensor, rows: Tensor) -> list[int]:
    """The four of largest score among ``rows``, which ascend, or all there are; the largest first, ties to the lowest."""
    order = scores[rows].sort(descending=True, stable=True).indices
    return rows[order][:OF_EACH_KIND].tolist()


def shares(keep: int, visual_pivots: int, count: int) -> list[int]:
    """How many rows each of ``count`` pivots takes: K' // 8, and more for the first ones where K' would not be reached."""
    share = keep // max(count, 1) if count < PIVOTS else keep // PIVOTS
    missing = max(0, keep - visual_pivots - count * share)
    return [share + missing // count + (number < missing % count) for number in range(count)]
