"""Figures and tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts.demo_results.records import Count, Row


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The first column is text, the others are figures."""
    rules = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, rules, *lines)]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def interval(row: Row) -> str:
    return f"{100 * row.low:.1f} to {100 * row.high:.1f}"


def accuracy(row: Row | None) -> str:
    """With the relative one, and the tokens of a layer where they are not the budget."""
    if row is None:
        return ""
    text = percent(row.accuracy) + ("" if row.relative is None else f" ({percent(row.relative)})")
    return text if row.reached else f"{text} [{row.tokens:.0f}]"


def share(count: Count | None) -> str:
    return "" if count is None else percent(count.right / count.asked)


def p_value(value: float | None) -> str:
    """Three decimals, or one digit and a power of ten."""
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
