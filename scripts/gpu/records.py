"""JSON files in the form of benchmarks/results."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from scripts.gpu.machine.environment import slug
from sts_export.files import replace_json

PARTS = ("kernels", "end-to-end")


def record_file(folder: Path, environment: dict[str, Any], part: str, *, toy: bool) -> Path:
    """DIR/<date>-<machine>-<part>.json; toys are named so that nobody takes them for a measurement."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return folder / f"{date}-{slug(environment['machine'])}-{'toy-' if toy else ''}{part}.json"


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Replace the file at once, so that it is whole even if the machine goes away meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_json(file, record)
