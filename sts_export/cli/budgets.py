"""Options that say how much a request keeps."""

from __future__ import annotations

import argparse
from typing import TypedDict

from sts_export.errors import BudgetError


class Asked(TypedDict):
    """At most one of them is given."""

    budget: str | None
    keep: tuple[int, int] | None


def add_budget(parser: argparse.ArgumentParser) -> None:
    amount = parser.add_argument_group("pruning")
    amount.add_argument("--budget", help="average visual tokens per decoder layer: 32, or 10%%; at most the export's (default)")
    add_keep(amount)


def add_keep(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--keep", metavar="K,K'", help="tokens kept by stage 1 and stage 2, instead of --budget")


def asked(args: argparse.Namespace) -> Asked:
    """Raises BudgetError for a ``--keep`` that is not two numbers."""
    return {"budget": args.budget, "keep": asked_keep(args)}


def asked_keep(args: argparse.Namespace) -> tuple[int, int] | None:
    """Raises BudgetError for what is not two numbers."""
    if args.keep is None:
        return None
    try:
        first, second = (int(part) for part in args.keep.split(","))
    except ValueError:
        raise BudgetError(f"--keep {args.keep!r} is not two numbers: give K,K' such as --keep 96,32") from None
    return first, second
