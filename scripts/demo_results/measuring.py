"""One table, measured: bundle after bundle, each asked with all its counts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from scripts.demo_results.bundles import bundle_of, code_digest
from scripts.demo_results.planning import Cell, Model, cells
from scripts.demo_results.records import Count, Record, Row, versions
from scripts.demo_results.variants import Table
from scripts.gpu.carry.tree import head
from sts_export.cli.progress import count_bar
from sts_export.evaluation.asked import Asked
from sts_export.evaluation.evaluate import Settings, evaluate
from sts_export.evaluation.results.rows import Row as Evaluated
from sts_export.evaluation.results.statistics import mcnemar
from sts_export.generation.pipeline import Pipeline

_FEATURES = 256 << 20  # bytes of features that wait for the next question about their picture


def measure(table: Table, model: Model, asked: Asked, work: Path, threads: int | None = None) -> Record:
    """Ask what has no answer yet in the work folder, and count.

    Raises:
        StsExportError: as ``export`` and ``evaluate``.
        OSError: the file system refuses.
    """
    own, code = cells(table, model), code_digest()
    # Exported before anything is asked, so that what is wrong shows at once.
    bundles = {cell.variant: bundle_of(cell.variant, model, work, code) for cell in own}
    found: dict[Cell, Evaluated] = {}
    for place, bundle in enumerate(folders := list(dict.fromkeys(bundles.values())), start=1):
        theirs = [cell for cell in own if bundles[cell.variant] == bundle]
        keeps = list(dict.fromkeys(cell.keep for cell in theirs))
        label = f"{table.name}, bundle {place} of {len(folders)}: {bundle.name}"
        with Pipeline(bundle, threads=threads, feature_cache=_FEATURES) as pipeline, count_bar(label) as progress:
            rows = evaluate(pipeline, asked, keeps=keeps, settings=Settings(output=work), progress=progress)
        found |= {cell: rows[keeps.index(cell.keep)] for cell in theirs}
    return Record(
        table=table.name,
        model=model.name,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        commit=head(),
        versions=versions(),
        questions=len(asked.questions),
        rows=counted(table, {cell: found[cell] for cell in own}),
    )


def counted(table: Table, found: Mapping[Cell, Evaluated]) -> tuple[Row, ...]:
    """Rows of a record, in the order of their cells; the first is unpruned."""
    return tuple(_row(table, cell, found) for cell in found)


def _row(table: Table, cell: Cell, found: Mapping[Cell, Evaluated]) -> Row:
    row, unpruned = found[cell], next(iter(found.values()))
    against = {other.variant.name: mcnemar(*_alone(row, found[other])) for other in found if _tested(table, cell, other)}
    return Row(
        name=cell.variant.name,
        method=row.method,
        budget=cell.budget,
        keep=cell.keep,
        tokens=cell.tokens,
        reached=cell.reached,
        asked=row.asked,
        right=int(row.right),
        accuracy=row.accuracy,
        low=row.interval[0],
        high=row.interval[1],
        relative=row.accuracy / unpruned.accuracy if unpruned.accuracy else None,
        kinds={kind: Count(int(count["asked"]), int(count["right"])) for kind, count in row.kinds.items()},
        mcnemar_p=against,
    )


def _tested(table: Table, cell: Cell, other: Cell) -> bool:
    """Whether a row is to be tested against another one: at the same budget, and only where both reach it."""
    if cell.budget != other.budget or not (cell.reached and other.reached) or cell.variant == other.variant:
        return False
    return other.variant.name == table.base or (cell.variant.name, other.variant.name) in table.pairs


def _alone(first: Evaluated, second: Evaluated) -> tuple[int, int]:
    """Questions that only the one and only the other got right."""
    pairs = [(score, second.units[unit][1]) for unit, (_, score) in first.units.items()]
    return sum(one > other for one, other in pairs), sum(one < other for one, other in pairs)
