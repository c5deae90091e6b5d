"""The pruning of one request: another budget, or other counts, up to what a bundle was exported for.

K and K' are inputs of the graphs.  Caches and engines are made for the exported ones, so nothing above these can be had.
"""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real

from sts_export.errors import BudgetError
from sts_export.pruning.budget import average_tokens, parse_budget, shown_range
from sts_export.pruning.config import PruningConfig

Budget = str | float  # "64", "20%" or a number of tokens, of Python or numpy
Counts = tuple[int, int]  # K and K'


def for_request(exported: PruningConfig, budget: Budget | None = None, keep: Counts | None = None) -> PruningConfig:
    """The configuration of one request.

    A budget is solved as it is for an export: by the same method, with the ratio of the bundle.  Where the graphs have no
    stage 1, K = N.

    Args:
        exported: the bundle's.
        budget: average visual tokens per layer, or a share of each image's own; None takes the bundle's.
        keep: K and K', instead of a budget.

    Raises:
        BudgetError: no budget, or one that cannot be had with this bundle; a share is checked for each image
            (:func:`keeps_of_image`).
    """
    if budget is not None and keep is not None:
        raise BudgetError("give either a budget (--budget 32) or explicit counts (--keep 48,16)")
    if budget is not None:
        return _at_budget(exported, _as_text(budget))
    return exported if keep is None else _at_counts(exported, keep)


def keeps_of_image(exported: PruningConfig, asked: PruningConfig, num_visual_tokens: int) -> Counts:
    """K and K' of an image of that many tokens under a request's configuration.

    Raises:
        BudgetError: more than the bundle was exported for.
    """
    keeps = asked.keeps(num_visual_tokens)
    if asked is not exported and not _within(exported, keeps):
        raise _unreachable(exported, asked.budget or "", num_visual_tokens)
    return keeps


def _at_budget(exported: PruningConfig, budget: str) -> PruningConfig:
    largest, share = exported.num_visual_tokens, budget.endswith("%")
    target = parse_budget(budget, largest)
    if not exported.reaches(target, largest):
        raise _unreachable(exported, budget, largest)
    keeps = exported.nearest(target, largest)
    # A share of a smaller image may be within reach where that of the largest is not.
    if not share and not _within(exported, keeps):
        raise _unreachable(exported, budget, largest)
    return replace(exported, budget=budget, keep_stage1=keeps[0], keep_stage2=keeps[1])


def _at_counts(exported: PruningConfig, keep: Counts) -> PruningConfig:
    if not isinstance(keep, (tuple, list)) or len(keep) != 2 or not all(_is_whole(count) for count in keep):
        raise BudgetError(
            f"keep is two whole numbers, K and K', not {str(keep)[:40]!r}: give such as --keep 48,16",
            field="keep",
        )
    counts = int(keep[0]), int(keep[1])
    if min(counts) < 1 or not _within(exported, counts):
        raise BudgetError(
            f"this bundle was exported for K = {exported.keep_stage1} and K' = {exported.keep_stage2}, and cannot keep "
            f"{counts[0]},{counts[1]}: choose K from 1 to {exported.keep_stage1} and K' from 1 to {exported.keep_stage2}, "
            "or export with a larger budget",
            field="keep",
        )
    if not exported.drops_before and counts[0] != exported.num_visual_tokens:
        raise BudgetError(
            f"this bundle drops nothing before the LLM, so K = {exported.num_visual_tokens}: "
            f"give --keep {exported.num_visual_tokens},K', or export with a smaller K",
            field="keep",
        )
    return replace(exported, budget=None, keep_stage1=counts[0], keep_stage2=counts[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _as_text(budget: object) -> str:
    """As on the command line, without spaces around it."""
    if isinstance(budget, str):
        return budget.strip()
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise BudgetError(f"budget is a number of tokens or a text such as '64' or '20%', not {type(budget).__name__}")
    try:
        number = Decimal(int(budget)) if isinstance(budget, Integral) else Decimal(repr(float(budget)))
    except OverflowError:  # beyond every float
        number = Decimal("inf")
    return f"{number:f}"


def _within(exported: PruningConfig, keeps: Counts) -> bool:
    return keeps[0] <= exported.keep_stage1 and keeps[1] <= exported.keep_stage2


def _unreachable(exported: PruningConfig, budget: str, num_visual_tokens: int) -> BudgetError:
    share = budget.endswith("%")
    least, highest = exported.lowest(num_visual_tokens), _highest(exported, num_visual_tokens)
    if least == num_visual_tokens:
        return BudgetError(
            f"budget {budget} is unreachable: this bundle drops none of {num_visual_tokens} visual tokens; leave the budget "
            "out, or export with it"
        )
    reachable = shown_range(least, highest, num_visual_tokens, share=share)
    what, picture = ("share", f" for a picture of {num_visual_tokens}") if share else ("number", "")
    return BudgetError(
        f"budget {budget} is unreachable: with this bundle the average {what} of visual tokens per layer can be "
        f"{reachable}{picture}; choose within that, or export with another budget"
    )


def _highest(exported: PruningConfig, num_visual_tokens: int) -> Fraction:
    """The largest budget that can be had for an image of that many tokens: the exported one, or an average."""
    layers = exported.num_layers
    low, high = math.ceil(exported.lowest(num_visual_tokens) * layers), num_visual_tokens * layers
    while low < high:  # averages are multiples of 1/T
        middle = (low + high + 1) // 2
        if _within(exported, exported.nearest(Fraction(middle, layers), num_visual_tokens)):
            low = middle
        else:
            high = middle - 1
    keeps = exported.nearest(Fraction(low, layers), num_visual_tokens)
    average = average_tokens(layers, exported.prune_layer, *keeps)
    own = Fraction(0) if exported.budget is None else parse_budget(exported.budget, num_visual_tokens)
    if own <= num_visual_tokens and _within(exported, exported.nearest(own, num_visual_tokens)):
        return max(average, own)
    return average
