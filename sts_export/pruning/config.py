"""What is kept where: the pruning configuration and the budget solver (METHOD, "Budgets").

Symbols as in the STS paper (arXiv 2606.03569): N visual tokens of an image, K kept by stage 1 (before the LLM), K' kept by
stage 2 (after decoder layer L of T), B the average number of visual tokens a decoder layer sees:

    B = (L * K + (T - L) * K') / T          K' = max(1, floor(ratio * K + 1e-6))
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, cast, get_args

from sts_export.errors import BudgetError
from sts_export.graphs.parts import DecoderPart, decoder_parts

Anchor = Literal["mean", "first", "saliency"]
Positions = Literal["reindex", "keep", "original"]
ScoreLayer = Literal["own", "next"]
Method = Literal["sts", "sts-s"]

METHODS: tuple[str, ...] = get_args(Method)
DEFAULT_RATIO = 1 / 3
DEFAULT_EPSILON = 1e-6
MIN_EPSILON = 1e-12
# The paper's prune layers: 7B, 13B and Qwen2.5-VL-7B decoders; other depths prune half-way.
_PAPER_PRUNE_LAYERS = {32: 16, 40: 16, 28: 14}
# No exponents: 1e999999999 is a short text and an enormous number.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_MAX_DIGITS = 40


@dataclass(frozen=True)
class PruningConfig:
    """Every choice of the two pruning stages; stored in the manifest.

    Args:
        num_visual_tokens: N, visual tokens of one image before pruning; the largest image's where sizes differ.
        num_layers: T, decoder layers.
        prune_layer: L, decoder layers that run before stage 2; 1 <= L < T.
        keep_stage1: K of an image of N tokens, 1 <= K <= N.
        keep_stage2: K' of an image of N tokens, 1 <= K' <= K.
        method: ``sts`` (both stages) or ``sts-s`` (stage 1 alone: K' = K).
        anchor: first token of stage 1: closest to the ``mean``, the ``first`` one, or highest CLS attention (``saliency``).
        positions: after stage 1, ``original`` leaves every token its position in the unpruned prompt, in all layers; the
            others make positions contiguous, and after stage 2 ``reindex`` does so again while ``keep`` keeps each
            survivor's.  With M-RoPE no position ever changes in stage 1, and ``keep`` is ``original``.
        score_layer: stage-2 attention is taken from the ``own`` last lower layer or the ``next`` (first upper) one.
        epsilon: added to squared distances in the repulsion potential.
        budget: as it was asked for, ``"64"`` or ``"20%"``; None for explicit counts.  A share makes K and K' follow each
            image's own N (:meth:`keeps`).
        ratio: K'/K that the budget was solved with.

    Raises:
        BudgetError: a value is out of its range.
    """

    derived_fields: ClassVar = ("average",)

    num_visual_tokens: int
    num_layers: int
    prune_layer: int
    keep_stage1: int
    keep_stage2: int
    method: Method = "sts"
    anchor: Anchor = "mean"
    positions: Positions = "reindex"
    score_layer: ScoreLayer = "own"
    epsilon: float = DEFAULT_EPSILON
    budget: str | None = None
    ratio: float = DEFAULT_RATIO

    def __post_init__(self) -> None:
        if not 1 <= self.prune_layer < self.num_layers:
            raise BudgetError(
                f"prune layer {self.prune_layer} is impossible for a decoder of {self.num_layers} layers: "
                f"choose --prune-layer between 1 and {self.num_layers - 1}"
            )
        if not 1 <= self.keep_stage1 <= self.num_visual_tokens:
            raise BudgetError(
                f"stage 1 cannot keep {self.keep_stage1} of {self.num_visual_tokens} visual tokens: "
                f"choose K between 1 and {self.num_visual_tokens}"
            )
        if not 1 <= self.keep_stage2 <= self.keep_stage1:
            raise BudgetError(
                f"stage 2 cannot keep {self.keep_stage2} of the {self.keep_stage1} tokens of stage 1: "
                f"choose K' between 1 and {self.keep_stage1}"
            )
        for name, allowed in (
            ("method", METHODS),
            ("anchor", get_args(Anchor)),
            ("positions", get_args(Positions)),
            ("score_layer", get_args(ScoreLayer)),
        ):
            if getattr(self, name) not in allowed:
                raise BudgetError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.method == "sts-s" and self.keep_stage2 != self.keep_stage1:
            raise BudgetError(
                f"method sts-s prunes before the LLM only, so K' = K: give --keep {self.keep_stage1},{self.keep_stage1}"
            )
        if not 0 < self.ratio <= 1:
            raise BudgetError(f"ratio K'/K must be in (0, 1], not {self.ratio}")
        if self.budget is not None:
            parse_budget(self.budget, self.num_visual_tokens)
        # Potentials of duplicates, N / epsilon, must stay far below the float32 limit.
        if not MIN_EPSILON <= self.epsilon < math.inf:
            raise BudgetError(f"epsilon must be a finite number of at least {MIN_EPSILON:g}, not {self.epsilon}")

    @property
    def average(self) -> float:
        """B, the true average number of visual tokens per decoder layer."""
        return float(average_tokens(self.num_layers, self.prune_layer, self.keep_stage1, self.keep_stage2))

    @property
    def parts(self) -> tuple[DecoderPart, ...]:
        """The decoder's parts."""
        return decoder_parts(self.num_layers, (self.prune_layer,))

    @property
    def survivors_keep_positions(self) -> bool:
        """Whether a row has the same position in the lower and the upper layers."""
        return self.positions != "reindex"

    def keeps(self, num_visual_tokens: int) -> tuple[int, int]:
        """K and K' of an image of that many tokens (1 <= n <= N).

        Counts are the same for every image and an image with fewer tokens keeps all it has; a share is solved anew.
        """
        if self.budget is None or not self.budget.strip().endswith("%"):
            keep1 = min(self.keep_stage1, num_visual_tokens)
            return keep1, min(self.keep_stage2, keep1)
        solved = solve_budget(
            max(Fraction(1), parse_budget(self.budget, num_visual_tokens)),
            num_visual_tokens=num_visual_tokens,
            num_layers=self.num_layers,
            prune_layer=self.prune_layer,
            ratio=self.ratio,
        )
        if self.keep_stage1 == self.num_visual_tokens and solved[0] < num_visual_tokens:
            # A graph without stage 1 cannot drop a token of a tiny image either, where rounding would.
            return num_visual_tokens, stage2_keep(num_visual_tokens, self.ratio)
        return solved

    def to_json(self) -> dict[str, Any]:
        """All fields and the true average, for the manifest."""
        return {**asdict(self), "average": self.average}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PruningConfig:
        """Inverse of :meth:`to_json`."""
        return cls(**{key: value for key, value in data.items() if key != "average"})


def default_prune_layer(num_layers: int) -> int:
    """L for a decoder of T layers: the paper's choice where it made one, else T // 2."""
    return _PAPER_PRUNE_LAYERS.get(num_layers, num_layers // 2)


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
        raise BudgetError(f"budget {shown!r} is not a plain number: give tokens (--budget 64) or a share (--budget 20%)")
    return Fraction(digits) * (Fraction(num_visual_tokens, 100) if percent else 1)


def _smallest_share(num_visual_tokens: int) -> str:
    """The percentage of one token, rounded up: the number shown is itself accepted."""
    decimals = len(str(num_visual_tokens)) + 1
    return f"{math.ceil(Fraction(100 * 10**decimals, num_visual_tokens)) / 10**decimals:.{decimals}f}"


def solve_budget(
    budget: Fraction | float, *, num_visual_tokens: int, num_layers: int, prune_layer: int, ratio: float = DEFAULT_RATIO
) -> tuple[int, int]:
    """K and K' whose true average is closest to ``budget``; of two equally close pairs the smaller.

    The candidates are one increasing line: K' = floor(ratio * K) for K = 1..N, then K = N with K' growing up to N, so
    that every average from 1 (one token everywhere) to N (nothing pruned) has a nearest pair.

    Raises:
        BudgetError: below 1 or above N.
    """
    if not 0 < ratio <= 1:
        raise BudgetError(f"ratio K'/K must be in (0, 1], not {ratio}")
    if not 1 <= budget <= num_visual_tokens:
        raise BudgetError(
            f"budget {float(budget):g} is unreachable: the average number of visual tokens per layer can be "
            f"1 to {num_visual_tokens} for this model"
        )
    first_free = stage2_keep(num_visual_tokens, ratio)

    def pair(step: int) -> tuple[int, int]:
        if step <= num_visual_tokens:
            return step, stage2_keep(step, ratio)
        return num_visual_tokens, first_free + step - num_visual_tokens

    def average(step: int) -> Fraction:
        return average_tokens(num_layers, prune_layer, *pair(step))

    target = Fraction(budget)
    low, high = 1, num_visual_tokens + (num_visual_tokens - first_free)  # average(high) = N >= target
    while low < high:
        middle = (low + high) // 2
        if average(middle) < target:
            low = middle + 1
        else:
            high = middle
    if low > 1 and target - average(low - 1) <= average(low) - target:
        low -= 1
    return pair(low)


def config_for_budget(
    budget: str,
    *,
    num_visual_tokens: int,
    num_layers: int,
    prune_layer: int | None = None,
    ratio: float = DEFAULT_RATIO,
    method: str = "sts",
    **choices: Any,
) -> PruningConfig:
    """The configuration for ``--budget``.

    Raises:
        BudgetError: unreachable budget, unknown method or an impossible choice.
    """
    if method not in METHODS:
        raise BudgetError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    layer = default_prune_layer(num_layers) if prune_layer is None else prune_layer
    if not 1 <= layer < num_layers:
        raise BudgetError(
            f"prune layer {layer} is impossible for a decoder of {num_layers} layers: "
            f"choose --prune-layer between 1 and {num_layers - 1}"
        )
    ratio = 1.0 if method == "sts-s" else ratio
    target = parse_budget(budget, num_visual_tokens)
    if budget.strip().endswith("%") and not 1 <= target <= num_visual_tokens:
        raise BudgetError(
            f"budget {budget.strip()} is unreachable: the average share of visual tokens per layer can be "
            f"{_smallest_share(num_visual_tokens)}% to 100% (1 to {num_visual_tokens} tokens) for this model"
        )
    keep1, keep2 = solve_budget(
        target,
        num_visual_tokens=num_visual_tokens,
        num_layers=num_layers,
        prune_layer=layer,
        ratio=ratio,
    )
    return PruningConfig(
        num_visual_tokens, num_layers, layer, keep1, keep2, cast("Method", method), budget=budget, ratio=ratio, **choices
    )


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
