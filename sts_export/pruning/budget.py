"""The budget solver (docs/method.md, "Budgets"), and how a budget is shared by the crops of an image.

Symbols as in the STS paper (arXiv 2606.03569): N visual tokens of an image, K kept by stage 1 (before the LLM), K' kept by
stage 2 (after decoder layer L of T), B the average number of visual tokens a decoder layer sees:

    B = (L * K + (T - L) * K') / T          K' = max(1, floor(ratio * K + 1e-6))
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from sts_export.errors import BudgetError

DEFAULT_RATIO = 1 / 3
# No exponents: 1e999999999 is a short text and an enormous number.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_MAX_DIGITS = 40


def average_tokens(num_layers: int, prune_layer: int, keep_stage1: int, keep_stage2: int) -> Fraction:
    """B as an exact fraction."""
    return Fraction(prune_layer * keep_stage1 + (num_layers - prune_layer) * keep_stage2, num_layers)


def stage2_keep(keep_stage1: int, ratio: float) -> int:
    """K' = max(1, floor(ratio * K + 1e-6)); the small term undoes the rounding of ratios such as 1/3."""
    return min(keep_stage1, max(1, math.floor(ratio * keep_stage1 + 1e-6)))


def parse_budget(text: str, num_visual_tokens: int) -> Fraction:
    """``"64"`` (tokens) or ``"20%"`` (of N) as an exact number of tokens.

    Raises:
        BudgetError: not a number.
    """
    body = text.strip()
    percent = body.endswith("%")
    digits = body.removesuffix("%").strip()
    if len(digits) > _MAX_DIGITS or not _NUMBER.fullmatch(digits):
        shown = text if len(text) <= _MAX_DIGITS else text[:_MAX_DIGITS] + "..."
        raise BudgetError(f"budget {shown!r} is not a plain number: give tokens, such as 64, or a share, such as 20%")
    return Fraction(digits) * (Fraction(num_visual_tokens, 100) if percent else 1)


def lowest_average(num_visual_tokens: int, num_layers: int, prune_layer: int, *, all_before: bool = False) -> Fraction:
    """The least B that can be had: one token everywhere, or only in the upper layers where stage 1 keeps all."""
    return average_tokens(num_layers, prune_layer, num_visual_tokens if all_before else 1, 1)


def _shown(number: Fraction, decimals: int, rounded: Callable[[Fraction], int]) -> str:
    """Rounded such that the number shown is itself accepted: a lower bound up, an upper one down."""
    if number.denominator == 1:
        return str(number)
    return f"{rounded(number * 10**decimals) / 10**decimals:.{decimals}f}"


def shown_range(lowest: Fraction, highest: Fraction, num_visual_tokens: int, *, share: bool) -> str:
    """The averages that can be had, in tokens or as a share of N: ``"1 to 64"``, ``"0.1737% to 11.1111% (1 to 64 tokens)"``."""
    tokens = f"{_shown(lowest, 2, math.ceil)} to {_shown(highest, 2, math.floor)}"
    if not share:
        return tokens
    per_token, decimals = Fraction(100, num_visual_tokens), len(str(num_visual_tokens)) + 1
    least, most = _shown(lowest * per_token, decimals, math.ceil), _shown(highest * per_token, decimals, math.floor)
    return f"{least}% to {most}% ({tokens} tokens)"


def check_share(budget: str, num_visual_tokens: int, lowest: Fraction) -> None:
    """A share that can be had; its refusal speaks of shares.

    Raises:
        BudgetError: it cannot.
    """
    if lowest <= parse_budget(budget, num_visual_tokens) <= num_visual_tokens:
        return
    reachable = shown_range(lowest, Fraction(num_visual_tokens), num_visual_tokens, share=True)
    raise BudgetError(
        f"budget {budget.strip()} is unreachable: the average share of visual tokens per layer can be "
        f"{reachable} for this model"
    )


def solve_budget(
    budget: Fraction | float,
    *,
    num_visual_tokens: int,
    num_layers: int,
    prune_layer: int,
    ratio: float = DEFAULT_RATIO,
    all_before: bool = False,
) -> tuple[int, int]:
    """K and K' whose true average is closest to ``budget``; of two equally close pairs the smaller.

    The candidates are one increasing line: K' = floor(ratio * K) for K = 1..N, then K = N with K' growing up to N, so
    that every average from 1 (one token everywhere) to N (nothing pruned) has a nearest pair.  Where stage 1 keeps
    everything (``all_before``) the line is K = N with K' = 1..N.

    Raises:
        BudgetError: below the lowest average or above N.
    """
    if not 0 < ratio <= 1:
        raise BudgetError(f"ratio K'/K must be in (0, 1], not {ratio}")
    lowest = lowest_average(num_visual_tokens, num_layers, prune_layer, all_before=all_before)
    if not lowest <= budget <= num_visual_tokens:
        raise BudgetError(
            f"budget {float(budget):g} is unreachable: the average number of visual tokens per layer can be "
            f"{shown_range(lowest, Fraction(num_visual_tokens), num_visual_tokens, share=False)} for this model"
            f"{' where stage 1 keeps all' if all_before else ''}"
        )
    first_free = 0 if all_before else stage2_keep(num_visual_tokens, ratio)
    growing = 0 if all_before else num_visual_tokens

    def pair(step: int) -> tuple[int, int]:
        if step <= growing:
            return step, stage2_keep(step, ratio)
        return num_visual_tokens, first_free + step - growing

    def average(step: int) -> Fraction:
        return average_tokens(num_layers, prune_layer, *pair(step))

    target = Fraction(budget)
    low, high = 1, growing + (num_visual_tokens - first_free)  # average(high) = N >= target
    while low < high:
        middle = (low + high) // 2
        if average(middle) < target:
            low = middle + 1
        else:
            high = middle
    if low > 1 and target - average(low - 1) <= average(low) - target:
        low -= 1
    return pair(low)


def share_keep(keep: int, candidates: Sequence[int]) -> list[int]:
    """How many tokens each crop of an image keeps, K in all.

    Equal shares.  A crop with no more candidates than its share keeps all of them, and what it leaves is shared by the
    others; what does not divide goes to the first of these.

    Args:
        keep: K; the result sums to ``min(keep, sum(candidates))``.
        candidates: tokens of each crop that the model reads (unpadding may leave a crop with few, or none).
    """
    shares, left = list(candidates), min(keep, sum(candidates))
    sharing = list(range(len(candidates)))
    while sharing:
        share, extra = divmod(left, len(sharing))
        larger = [crop for crop in sharing if candidates[crop] > share]
        if len(larger) == len(sharing):
            for place, crop in enumerate(larger):
                shares[crop] = share + (place < extra)
            break
        left -= sum(candidates[crop] for crop in sharing if candidates[crop] <= share)
        sharing = larger
    return shares
