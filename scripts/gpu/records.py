"""JSON files in the form of benchmarks/results."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from scripts.gpu.machine.environment import slug
from sts_export.files import replace_json

PARTS = ("kernels", "sanitize", "profile", "smoke", "end-to-end", "ab")


def record_file(folder: Path, environment: dict[str, Any], part: str, *, toy: bool, label: str | None = None) -> Path:
    """DIR/<date>-<machine>-<part>-<label>.json; toys are named so that nobody takes them for a measurement."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    kind = "toy-" if toy else ""
    return folder / f"{date}-{slug(environment['machine'])}-{kind}{part}{f'-{label}' if label else ''}.json"


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Replace the file at once, so that it is whole even if the machine goes away meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_json(file, record)


def latest_record(folder: Path, part: str, *, toy: bool) -> dict[str, Any]:
    """The last record of a part in a folder, whatever the day; empty if there is none."""
    files = sorted(folder.glob(f"*-{part}.json")) if folder.is_dir() else []
    files = [file for file in files if ("-toy-" in file.name) is toy]
    content: dict[str, Any] = json.loads(files[-1].read_text()) if files else {}
    return content
