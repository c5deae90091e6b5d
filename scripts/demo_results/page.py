"""The page, from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.demo_results.markdown import accuracy, interval, p_value, percent, share, table
from scripts.demo_results.records import Record, latest_record
from scripts.demo_results.variants import TABLES, Table

PAGE = Path("docs") / "evaluation" / "demo_results.md"
_HEAD = """# Results of the demo model

The demo world's held-out questions, exact match, greedy, ONNX Runtime on the CPU. One command makes the bundles, asks
what has no answer yet, writes a record a table and this page; with `--page-only` it makes the page from the records:

```console
./scripts/evaluate_demo
```

- A budget is the average number of visual tokens of a picture that a decoder layer sees. All else is as `sts-export`
  does it by default, in float32, unless a row says otherwise.
- A cell is the accuracy and, in parentheses, its share of the unpruned one. Records have counts, and Wilson's 95 %
  interval of every row.
- Brackets: the method keeps all tokens before its prune layer, so it cannot reach the budget. It keeps the budget's
  number after that layer; in brackets is what a layer sees on average. Such rows are not tested against others.
- p is McNemar's, exact and two-sided, on the same questions; not corrected for the number of rows.
"""


def page(records: Sequence[tuple[str, Record]]) -> str:
    """A section for each record.

    Args:
        records: file names and what is in the files, in the order of TABLES.
    """
    by_name = {own.name: own for own in TABLES}
    if not records:
        return f"{_HEAD}\nNothing of it has been measured yet.\n"
    return "\n".join([_HEAD, *("\n".join(_section(by_name[record.table], name, record)) for name, record in records)])


def records_in(output: Path) -> list[tuple[str, Record]]:
    """The newest record of each table that has one.

    Raises:
        RequestError: a file is no record.
    """
    found = [latest_record(own.name, output) for own in TABLES]
    return [one for one in found if one is not None]


def _section(own: Table, name: str, record: Record) -> list[str]:
    unpruned = record.rows[0]
    lines = [
        f"## {own.title}",
        "",
        f"{record.questions} questions, {record.date}, `{name}`. Unpruned: {percent(unpruned.accuracy)} "
        f"({interval(unpruned)}).",
        "",
    ]
    budgets = list(dict.fromkeys(row.budget for row in record.rows))
    if len(own.budgets) == 1:
        return [*lines, *_choices(own, record), ""]
    lines += [*_accuracies(record, budgets), ""]
    if own.kinds_at is not None:
        lines += [f"By kind of question, at {own.kinds_at}:", "", *_kinds(record, own.kinds_at), ""]
    lines += [f"p against `{own.base}` at the same budget:", "", *_tests(own, record, budgets), ""]
    if own.pairs:
        lines += ["p of other pairs:", "", *_pairs(own, record, budgets), ""]
    return lines


def _names(record: Record) -> list[str]:
    return list(dict.fromkeys(row.name for row in record.rows))


def _columns(budgets: Sequence[int | None]) -> list[str]:
    return ["unpruned" if budget is None else str(budget) for budget in budgets]


def _accuracies(record: Record, budgets: Sequence[int | None]) -> list[str]:
    """Rows by budgets; the unpruned column only where more than one row has it."""
    shown = [budget for budget in budgets if budget is not None or len(_at(record, None)) > 1]
    names = [name for name in _names(record) if any(record.row(name, budget) for budget in shown)]
    lines = ([f"`{name}`", *(accuracy(record.row(name, budget)) for budget in shown)] for name in names)
    return table(["", *_columns(shown)], lines)


def _at(record: Record, budget: int | None) -> list[str]:
    return [row.name for row in record.rows if row.budget == budget]


def _kinds(record: Record, budget: int | None) -> list[str]:
    kinds = list(dict.fromkeys(kind for row in record.rows for kind in row.kinds))
    rows = [record.rows[0], *(row for row in record.rows if row.budget == budget)]
    lines = ([f"`{row.name}`", *(share(row.kinds.get(kind)) for kind in kinds)] for row in rows)
    return table(["", *kinds], lines)


def _tests(own: Table, record: Record, budgets: Sequence[int | None]) -> list[str]:
    return _matrix(record, budgets, [(name, own.base) for name in _names(record) if name != own.base], against=False)


def _pairs(own: Table, record: Record, budgets: Sequence[int | None]) -> list[str]:
    return _matrix(record, budgets, own.pairs, against=True)


def _matrix(record: Record, budgets: Sequence[int | None], pairs: Sequence[tuple[str, str]], *, against: bool) -> list[str]:
    """Without rows and columns that are empty."""
    values = {
        (name, other, budget): row.mcnemar_p[other]
        for name, other in pairs
        for budget in budgets
        if (row := record.row(name, budget)) is not None and other in row.mcnemar_p
    }
    shown = [budget for budget in budgets if any(key[2] == budget for key in values)]
    lines = [
        [f"`{name}` against `{other}`" if against else f"`{name}`", *(p_value(values.get((name, other, one))) for one in shown)]
        for name, other in pairs
        if any(key[:2] == (name, other) for key in values)
    ]
    return table(["", *_columns(shown)], lines)


def _choices(own: Table, record: Record) -> list[str]:
    """A row a choice, for tables with one budget."""
    lines = [
        [
            row.name,
            f"{row.keep[0]}, {row.keep[1]}",
            f"{row.tokens:.1f}",
            percent(row.accuracy),
            interval(row),
            "" if row.relative is None else percent(row.relative),
            p_value(row.mcnemar_p.get(own.base)),
        ]
        for row in record.rows
    ]
    return table(["", "K, K'", "tokens of a layer", "accuracy", "95 % interval", "relative", f"p against `{own.base}`"], lines)
