"""Arguments of ``scripts/gpu/run``; a wrong one is refused in one line before anything runs."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.gpu.end_to_end.baselines import BASELINES
from scripts.gpu.end_to_end.shapes import BUDGETS, SHAPES
from scripts.gpu.kernels.sanitizer import TOOLS
from scripts.gpu.records import PARTS
from scripts.gpu.refusals import Parser
from sts_export.backends.choice import BACKENDS
from sts_export.errors import BudgetError
from sts_export.pruning.budget import parse_budget

_DEFAULT_BUDGETS = "; ".join(f"{name}: {','.join(budgets)}" for name, budgets in BUDGETS.items()).replace("%", "%%")


def parser() -> Parser:
    """Values are checked as far as they can be without a model or a GPU."""
    made = Parser(prog="scripts/gpu/run", description="README.md beside it says what it does.", allow_abbrev=False)
    option = made.add_argument
    option("--output", type=Path, default=Path(), help="folder for the JSON files (default: the current one)")
    option("--parts", type=_names(PARTS), default=PARTS, help=f"default: {','.join(PARTS)}")
    option("--shapes", type=_names(list(SHAPES)), default=tuple(SHAPES), help=f"default: {','.join(SHAPES)}")
    option("--budgets", type=_budgets, help=f"tokens or a share of them (20%%); default: {_DEFAULT_BUDGETS}")
    option("--backends", type=_names(BACKENDS), help=f"of {','.join(BACKENDS)} (default: the GPU backends that can run here)")
    option("--baselines", type=_names(BASELINES), default=BASELINES, help=f"default: {','.join(BASELINES)}")
    option("--tools", type=_names(TOOLS), default=TOOLS, help=f"of compute-sanitizer; default: {','.join(TOOLS)}")
    option("--binaries", type=Path, help="folder with check_kernels, sts_conformance and the libraries, built before")
    option("--new-tokens", type=_count(2), default=32, help="tokens of every answer (default: 32)")
    option("--repeats", type=_count(1), default=5, help="timed runs of every contender (default: 5)")
    option("--time-limit", type=_seconds, default=570, help="seconds; what has not run by then is left out (default: 570)")
    option("--scratch", type=Path, help="folder for checkpoints, some 15 GB at a time (default: a temporary one)")
    option("--label", type=_label, help="added to the names of the JSON files, so that another run does not replace them")
    option("--commit", help="commit of the sources (default: asks git)")
    option("--toy", action="store_true", help="tiny shapes on the CPU: tries the scripts, measures nothing")
    option("--directory", type=Path, default=Path(), help="where relative paths start (default: the current folder)")
    return made


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: names of ``known``, separated by commas; a name that comes twice counts once."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        if unknown := [repr(name) for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        return names

    return parse


def _budgets(text: str) -> tuple[str, ...]:
    """Budgets, separated by commas; which are too large only the model knows."""
    budgets = tuple(dict.fromkeys(text.split(",")))
    for budget in budgets:
        try:
            number = parse_budget(budget, 100)
        except BudgetError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        share = budget.rstrip().endswith("%")
        if number <= 0 or (share and number > 100) or (not share and number < 1):
            raise argparse.ArgumentTypeError(f"budget {budget!r} is out of range: give 1 token or more, or up to 100%")
    return budgets


def _count(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least this."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return number

    return parse


def _label(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no part of a file name: letters, digits, '.', '_' and '-'")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
