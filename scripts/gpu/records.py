"""JSON files in the form of benchmarks/results."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from scripts.gpu.environment import slug

PARTS = ("kernels", "end-to-end")


def record_file(folder: Path, environment: dict[str, Any], part: str, *, toy: bool) -> Path:
    """DIR/<date>-<machine>-<part>.json; toys are named so that nobody takes them for a measurement."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return folder / f"{date}-{slug(environment['machine'])}-{'toy-' if toy else ''}{part}.json"


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Replace the file at once, so that it is whole even if the machine goes away meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(file)
