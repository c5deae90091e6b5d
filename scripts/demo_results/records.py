"""A table's JSON file."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from sts_export.errors import RequestError
from sts_export.files import replace_json

RESULTS = Path("benchmarks") / "results"
_PACKAGES = ("sts-export", "numpy", "onnxruntime", "pillow", "tokenizers")


@dataclass(frozen=True)
class Count:
    """Of one kind of question."""

    asked: int
    right: int


@dataclass(frozen=True)
class Row:
    """A variant at a budget.

    Args:
        name: the variant's.
        method: as the bundle's manifest has it.
        budget: None: it drops nothing.
        keep: K and K' of a picture.
        tokens: of a picture in a decoder layer, on average.
        reached: whether that is the budget.
        accuracy, low, high: as fractions, with Wilson's 95 % interval.
        relative: accuracy over that of the table's first row; None where that is 0.
        kinds: by kind of question.
        mcnemar_p: name of another row of the same budget -> exact two-sided p.
    """

    name: str
    method: str
    budget: int | None
    keep: tuple[int, int]
    tokens: float
    reached: bool
    asked: int
    right: int
    accuracy: float
    low: float
    high: float
    relative: float | None
    kinds: dict[str, Count]
    mcnemar_p: dict[str, float]


@dataclass(frozen=True)
class Record:
    """A table as it was measured.

    Args:
        date: UTC, YYYY-MM-DD.
        questions: that each row was asked.
    """

    table: str
    model: str
    date: str
    commit: str
    versions: dict[str, str]
    questions: int
    rows: tuple[Row, ...]

    def row(self, name: str, budget: int | None) -> Row | None:
        """The row of a variant at a budget, if it is there."""
        return next((row for row in self.rows if (row.name, row.budget) == (name, budget)), None)


def file_name(table: str, date: str) -> str:
    return f"{date}-cpu{os.cpu_count()}-demo-{table}.json"


def write_record(record: Record, output: Path) -> Path:
    """Raises OSError where the file system refuses."""
    file = output / RESULTS / file_name(record.table, record.date)
    replace_json(file, asdict(record))
    return file


def latest_record(table: str, output: Path) -> tuple[str, Record] | None:
    """The newest file of a table, and what is in it.

    Raises:
        RequestError: it is no record of this table.
    """
    files = sorted((output / RESULTS).glob(f"????-??-??-*-demo-{table}.json"))
    if not files:
        return None
    try:
        record = msgspec.json.decode(files[-1].read_bytes(), type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(f"{files[-1]} is no record of table {table} ({error}); correct it or measure again") from None
    if record.table != table or not record.rows:
        raise RequestError(f"{files[-1]} is no record of table {table}; give the file its right name or measure again")
    return files[-1].name, record


def versions() -> dict[str, str]:
    """Of Python and the packages that answers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
