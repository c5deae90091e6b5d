"""What is kept where, and by which stages: the pruning configuration.

Symbols as in budget.py: N visual tokens of an image, K kept by stage 1, K' by stage 2, after decoder layer L of T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, get_args

from sts_export.errors import BudgetError, BundleError
from sts_export.graphs.decoder.parts import DecoderPart, decoder_parts
from sts_export.graphs.needs import OF_SELECTOR, SEED
from sts_export.json_records import Form
from sts_export.pruning.budget import (
    DEFAULT_RATIO,
    average_tokens,
    lowest_average,
    parse_budget,
    solve_budget,
)
from sts_export.pruning.registry import Kind, UnknownNameError, find_method, find_stage1, find_stage2, package_of
from sts_export.pruning.settings import make_stage, setting_types, settings_of, split_spec
from sts_export.pruning.stage import Stage, Stage1, Stage2
from sts_export.pruning.stage1.repulsion import Repulsion
from sts_export.pruning.stage2.last_token import LastToken

Positions = Literal["reindex", "keep", "original"]
# Joins the names of two stages that are no method's.
PAIR = "+"


@dataclass(frozen=True)
class StageRecord:
    """A stage as the manifest names it.

    ``package`` is the distribution that brings it, null for our own.
    """

    name: str
    settings: dict[str, bool | int | float | str]
    package: str | None


def _recorded(kind: Kind, find: Callable[[str], Any]) -> Form:
    """How a stage is written."""

    def read(record: StageRecord) -> Any:
        try:
            stage = find(record.name)
        except UnknownNameError:
            if record.package is None:
                raise
            raise BundleError(
                f"this bundle's stage {kind[-1]} {record.name!r} comes with the package {record.package!r}, which is not "
                "installed here: install it, or export the bundle again"
            ) from None
        if missing := [name for name in setting_types(stage) if name not in record.settings]:
            raise BudgetError(f"{record.name} lacks the settings {', '.join(missing)}")
        return make_stage(stage, record.settings)

    def write(stage: Stage) -> StageRecord:
        return StageRecord(stage.name, settings_of(stage), package_of(kind, stage.name))

    return Form(lambda: StageRecord, read, write)


def _installed_method(name: str) -> str:
    """Raises BundleError for a method that no installed package has."""
    try:
        if PAIR not in name:
            find_method(name)
    except UnknownNameError:
        raise BundleError(
            f"this bundle's method {name!r} is not installed here: install the package that brings it, or export the bundle "
            "again"
        ) from None
    return name


@dataclass(frozen=True)
class PruningConfig:
    """Every choice of the two pruning stages; stored in the manifest.

    Args:
        num_visual_tokens: N, visual tokens of one image before pruning; the largest image's where sizes differ.
        num_layers: T, decoder layers.
        prune_layer: L, decoder layers that run before stage 2; 1 <= L < T.
        keep_stage1: K of an image of N tokens, 1 <= K <= N.
        keep_stage2: K' of an image of N tokens, 1 <= K' <= K.
        method: name of the pair of stages, ``STAGE1+STAGE2`` for a pair that is no method's.
        stage1: before the LLM, with its settings.
        stage2: inside the LLM, with its settings.
        positions: after stage 1, ``original`` leaves every token its position in the unpruned prompt, in all layers; the
            others make positions contiguous, and after stage 2 ``reindex`` does so again while ``keep`` keeps each
            survivor's.  With M-RoPE no position ever changes in stage 1, and ``keep`` is ``original``.
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
    method: str = field(default="sts", metadata=Form(lambda: str, _installed_method).metadata)
    stage1: Stage1 = field(default_factory=Repulsion, metadata=_recorded("stage1", find_stage1).metadata)
    stage2: Stage2 = field(default_factory=LastToken, metadata=_recorded("stage2", find_stage2).metadata)
    positions: Positions = "reindex"
    budget: str | None = None
    ratio: float = DEFAULT_RATIO

    def __post_init__(self) -> None:
        check_prune_layer(self.prune_layer, self.num_layers)
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
        if self.positions not in get_args(Positions):
            raise BudgetError(f"unknown positions {self.positions!r}: choose one of {', '.join(get_args(Positions))}")
        self._check_stages()
        if not 0 < self.ratio <= 1:
            raise BudgetError(f"ratio K'/K must be in (0, 1], not {self.ratio}")
        if self.budget is not None:
            parse_budget(self.budget, self.num_visual_tokens)

    def _check_stages(self) -> None:
        """The method is these two stages, and what they never drop is kept."""
        pair = self.stage1.name, self.stage2.name
        if self.method != PAIR.join(pair):
            method = find_method(self.method)
            pairs = [(split_spec(first)[0], split_spec(method.stage2)[0]) for first in method.stage1_choices]
            if pair not in pairs:
                raise BudgetError(f"{self.method} is {' and '.join(pairs[0])}, not {' and '.join(pair)}")
        if self.stage1.keeps_all and self.keep_stage1 != self.num_visual_tokens:
            keep2 = self.num_visual_tokens if self.stage2.keeps_all else "K'"
            raise BudgetError(
                f"stage 1 {self.stage1.name} keeps all {self.num_visual_tokens} visual tokens, so K = N: "
                f"give --keep {self.num_visual_tokens},{keep2}"
            )
        if self.only_before and self.keep_stage2 != self.keep_stage1:
            what = "nothing" if self.stage1.keeps_all else "before the LLM only"
            raise BudgetError(
                f"method {self.method} prunes {what}, so K' = K: give --keep {self.keep_stage1},{self.keep_stage1}"
            )

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

    @property
    def drops_before(self) -> bool:
        """Whether stage 1 drops a token of any image; :meth:`keeps` sees to it that the largest one decides."""
        return self.keep_stage1 < self.num_visual_tokens

    @property
    def only_before(self) -> bool:
        """Whether nothing is ever dropped inside the LLM: K' = K."""
        return self.stage2.keeps_all or (PAIR not in self.method and find_method(self.method).ratio == 1)

    @property
    def all_before(self) -> bool:
        """Whether K = N in these graphs: stage 1 keeps all, or was left out."""
        return self.stage1.keeps_all or not self.drops_before

    @property
    def stage1_needs(self) -> frozenset[str]:
        """What stage 1 takes beside the features (``graphs.needs``); nothing where it is left out."""
        return self.stage1.needs if self.drops_before else frozenset()

    @property
    def draws_inside(self) -> bool:
        """Whether stage 2 takes a seed."""
        return SEED in self.stage2.needs

    @property
    def merges(self) -> bool:
        """Whether stage 1 merges what it drops into what it keeps."""
        return self.stage1.merges and self.drops_before

    @property
    def tower_needs(self) -> frozenset[str]:
        """Of these, what the vision tower gives."""
        return self.stage1_needs - OF_SELECTOR

    def keeps(self, num_visual_tokens: int) -> tuple[int, int]:
        """K and K' of an image of that many tokens (1 <= n <= N).

        Counts are the same for every image and an image with fewer tokens keeps all it has; a share is solved anew.
        """
        if self.budget is None or not self.budget.strip().endswith("%"):
            keep1 = min(self.keep_stage1, num_visual_tokens)
            return keep1, min(self.keep_stage2, keep1)
        return self.nearest(parse_budget(self.budget, num_visual_tokens), num_visual_tokens)

    def lowest(self, num_visual_tokens: int) -> Fraction:
        """The least average that these graphs can have for an image of that many tokens."""
        if self.only_before and self.all_before:
            return Fraction(num_visual_tokens)
        return self._least(num_visual_tokens, all_before=self.all_before)

    def nearest(self, average: Fraction, num_visual_tokens: int) -> tuple[int, int]:
        """K and K' of an image of that many tokens whose average is nearest, or the least that there is.

        Raises:
            BudgetError: more than the image has.
        """
        solved = self._solve(average, num_visual_tokens, all_before=self.stage1.keeps_all)
        if self.drops_before or solved[0] == num_visual_tokens:
            return solved
        # A graph without stage 1 cannot drop a token of a tiny image either, where rounding would.
        if self.only_before:
            return num_visual_tokens, num_visual_tokens
        return self._solve(average, num_visual_tokens, all_before=True)

    def reaches(self, average: Fraction, num_visual_tokens: int) -> bool:
        """Whether these graphs can keep of an image of that many tokens what an export at this average would."""
        if average > num_visual_tokens or average < self._least(num_visual_tokens, all_before=self.stage1.keeps_all):
            return False
        if average >= self.lowest(num_visual_tokens):
            return True
        # Rounding up to all tokens, an export has no stage 1 for averages a little below N either.
        return self._solve(average, num_visual_tokens, all_before=self.stage1.keeps_all)[0] == num_visual_tokens

    def _solve(self, average: Fraction, num_visual_tokens: int, *, all_before: bool) -> tuple[int, int]:
        return solve_budget(
            max(self._least(num_visual_tokens, all_before=all_before), average),
            num_visual_tokens=num_visual_tokens,
            num_layers=self.num_layers,
            prune_layer=self.prune_layer,
            ratio=1.0 if self.only_before else self.ratio,
            all_before=all_before,
        )

    def _least(self, num_visual_tokens: int, *, all_before: bool) -> Fraction:
        return lowest_average(num_visual_tokens, self.num_layers, self.prune_layer, all_before=all_before)


def check_prune_layer(prune_layer: int, num_layers: int) -> None:
    """Raises BudgetError if there are not layers on both sides of it."""
    if not 1 <= prune_layer < num_layers:
        raise BudgetError(
            f"prune layer {prune_layer} is impossible for a decoder of {num_layers} layers: "
            f"choose --prune-layer between 1 and {num_layers - 1}"
        )
