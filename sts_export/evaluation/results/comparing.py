"""Rows against each other, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sts_export.errors import RequestError
from sts_export.evaluation.results.rows import Row
from sts_export.evaluation.results.statistics import Interval, bootstrap, mcnemar


@dataclass(frozen=True)
class Comparison:
    """A row against a base row.

    Args:
        relative: score / score of the unpruned row of the task, as a fraction; None without one.
        unpruned: name of that row.
        base: name of the row that the rest is about; None without one.
        difference, interval: of the accuracies, as fractions, with its 95 % confidence interval by paired draws.
        only_base, only_this: units that only the one or only the other got right.
        p: exact McNemar; None where scores are not right or wrong.
    """

    relative: float | None
    unpruned: str | None
    base: str | None = None
    difference: float | None = None
    interval: Interval | None = None
    only_base: int | None = None
    only_this: int | None = None
    p: float | None = None


def compare(rows: Sequence[Row], base: str | None = None) -> list[Comparison]:
    """Every row against the unpruned one, and against a base row.

    Args:
        rows: of one task or of several.
        base: ``BUNDLE@BUDGET``, or ``BUNDLE`` where it has one row a task; None: the unpruned row.

    Raises:
        RequestError: no or several such rows; questions differ.
    """
    return [_compared(row, rows, base) for row in rows]


def mean_relative(rows: Sequence[Row]) -> dict[str, float]:
    """Row name -> mean over tasks of the relative scores in percent, as papers have it; rows without one are left out."""
    found: dict[str, list[float | None]] = {}
    for row, comparison in zip(rows, compare(rows), strict=True):
        found.setdefault(row.name, []).append(comparison.relative)
    whole = {name: [one for one in own if one is not None] for name, own in found.items()}
    return {name: 100 * float(np.mean(own)) for name, own in whole.items() if len(own) == len(found[name])}


def unpruned_row(row: Row, rows: Sequence[Row]) -> Row | None:
    """Of the row's own bundle, else the first of its task."""
    there = [one for one in rows if one.unpruned and one.task == row.task]
    return next((one for one in there if one.bundle == row.bundle), there[0] if there else None)


def _compared(row: Row, rows: Sequence[Row], base: str | None) -> Comparison:
    unpruned = unpruned_row(row, rows)
    relative = row.score / unpruned.score if unpruned is not None and unpruned.score else None
    name = None if unpruned is None else unpruned.name
    own = [one for one in rows if one.task == row.task]
    other = unpruned if base is None else own[find_row(base, [(one.bundle, one.budget) for one in own])]
    if other is None or other is row:
        return Comparison(relative, name, None if other is None else other.name)
    if row.units.keys() != other.units.keys():
        raise RequestError(f"{row.name} and {other.name} were asked other questions; evaluate both with the same --limit")
    pairs = np.array([(row.units[unit][1], other.units[unit][1]) for unit in row.units], np.float64)
    drawn = np.column_stack([pairs[:, 0] - pairs[:, 1], np.ones(len(pairs))])
    interval = bootstrap({"all": drawn}, lambda sums: sums["all"][..., 0] / sums["all"][..., 1])
    difference = float(row.accuracy - other.accuracy)
    if not np.isin(pairs, (0, 1)).all():
        return Comparison(relative, name, other.name, difference, interval)
    only_this, only_base = (int(((pairs[:, side] == 1) & (pairs[:, 1 - side] == 0)).sum()) for side in (0, 1))
    return Comparison(relative, name, other.name, difference, interval, only_base, only_this, mcnemar(only_base, only_this))


def find_row(name: str, rows: Sequence[tuple[str, str]]) -> int:
    """Place of a row among bundles and their budgets, by ``BUNDLE@BUDGET``, or ``BUNDLE`` alone where it has one.

    Raises:
        RequestError: no row has the name, or several have.
    """
    found = [place for place, (bundle, budget) in enumerate(rows) if name in (bundle, f"{bundle}@{budget}")]
    if len(found) == 1:
        return found[0]
    what = "several rows are" if found else "no row is"
    names = ", ".join(f"{bundle}@{budget}" for bundle, budget in rows)
    raise RequestError(f"{what} {name!r}: choose one of {names} (--compare-with)")
