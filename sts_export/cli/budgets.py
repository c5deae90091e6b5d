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
    amount.add_argument("--keep", metavar="K,K'", help="tokens kept by stage 1 and stage 2, instead of --budget")


def asked(args: argparse.Namespace) -> Asked:
    """Raises BudgetError for a ``--keep`` that is not two numbers."""
    return {"budget": args.budget, "keep": None if args.keep is None else parse_keep(args.keep)}


def parse_keep(text: str) -> tuple[int, int]:
    """Raises BudgetError for what is not two numbers."""
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise BudgetError(f"--keep {text!r} is not two numbers: give K,K' such as --keep 96,32") from None
    return first, second
