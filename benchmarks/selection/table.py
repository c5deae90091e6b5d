"""The record of a run as a table of docs/methods.md: `python -m benchmarks.selection --table FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# How the table begins in a page.
_HEAD = "| method | N = "
# Part of a method -> column.
PARTS = {"tower": "tower", "selection": "stage 1", "projecting": "projecting all", "inside": "stage 2"}


def rows(record: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table, a row a method: milliseconds for every shape, and all but the projection as a share."""
    heads, rules = ["method"], ["---"]
    for shape in record["shapes"]:
        heads += [f"N = {shape['tokens']}: {next(iter(PARTS.values()))}", *list(PARTS.values())[1:], "share"]
        rules += ["---:"] * (len(PARTS) + 1)
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(rules) + "|"]
    for name in record["shapes"][0]["methods"]:
        cells = [f"`{name}`"]
        for shape in record["shapes"]:
            cells += cells_of(shape["methods"][name])
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cells_of(method: Mapping[str, Any]) -> list[str]:
    """Milliseconds of each part, empty where a method adds nothing, and the share of the first token."""
    parts = [f"{method['ms'][part]:.1f}" if part in method["ms"] else "" for part in PARTS]
    return [*parts, f"{method['shares']['choosing']:.1%}"]


def put(page: str, lines: Sequence[str]) -> str:
    """The page with ``lines`` in place of its table of this kind.

    Raises:
        ValueError: it has none.
    """
    kept: list[str] = []
    found = inside = False
    for line in page.splitlines():
        starts = line.startswith(_HEAD)
        inside = starts or (inside and line.startswith("|"))
        if starts:
            kept += lines
        found = found or starts
        if not inside:
            kept.append(line)
    if not found:
        raise ValueError(f"the page has no table that begins with {_HEAD!r}")
    return "\n".join(kept) + "\n"
