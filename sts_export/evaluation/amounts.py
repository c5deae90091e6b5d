"""How much is kept: the budgets of one bundle that its graphs reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sts_export.errors import BudgetError
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.per_request import Budget, Counts, for_request, keeps_of_image


@dataclass(frozen=True)
class Amount:
    """A budget or counts, as :meth:`sts_export.generation.pipeline.Pipeline.generate` takes them; neither: the export's own."""

    budget: Budget | None = None
    keep: Counts | None = None

    def of(self, exported: PruningConfig) -> PruningConfig:
        """Raises BudgetError where the bundle does not reach it, for the largest picture if it is a share."""
        asked = for_request(exported, self.budget, self.keep)
        keeps_of_image(exported, asked, exported.num_visual_tokens)
        return asked


OWN = Amount()


def label(pruning: PruningConfig) -> str:
    """The budget, or K,K' where counts were asked for."""
    return pruning.budget or f"{pruning.keep_stage1},{pruning.keep_stage2}"


def drops_nothing(pruning: PruningConfig) -> bool:
    return pruning.keep_stage2 == pruning.num_visual_tokens


def reached(bundles: Sequence[tuple[str, PruningConfig]], asked: Sequence[Amount]) -> tuple[list[list[Amount]], list[str]]:
    """What each bundle is asked with, and a line for every amount that is left out.

    A bundle gets those that it reaches.  An unpruned one that reaches none gets its own: it is there to be compared with.

    Args:
        bundles: their names and configurations.
        asked: none: every bundle's own.

    Raises:
        BudgetError: one that no bundle reaches, or a bundle that reaches none.
    """
    if not asked:
        return [[OWN] for _ in bundles], []
    taken: list[list[Amount]] = []
    refusals: dict[Amount, BudgetError] = {}
    notes = []
    for name, pruning in bundles:
        own: list[Amount] = []
        refused: list[BudgetError] = []
        for amount in asked:
            try:
                amount.of(pruning)
                own.append(amount)
            except BudgetError as error:
                refused.append(error)
                refusals[amount] = error
                if not drops_nothing(pruning):
                    notes.append(f"{name}, budget {_shown(amount)} is left out: {error}")
        if not own and drops_nothing(pruning):
            own = [OWN]
        if not own:
            raise _named(name, refused[0], len(bundles))
        taken.append(own)
    for amount in asked:
        if not any(amount in own for own in taken):
            raise _named(bundles[-1][0], refusals[amount], len(bundles))
    return taken, notes


def _shown(amount: Amount) -> str:
    return str(amount.budget) if amount.keep is None else ",".join(map(str, amount.keep))


def _named(name: str, error: BudgetError, bundles: int) -> BudgetError:
    return error if bundles == 1 else BudgetError(f"{name}: {error}")
