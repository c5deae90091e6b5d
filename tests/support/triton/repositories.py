"""Model repositories of tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sts_export.triton.repository.options import RepositoryOptions
from sts_export.triton.repository.writing import write_repository

MODEL = "demo"


@dataclass(frozen=True)
class Repository:
    """A folder, and the name of the model in it."""

    folder: Path
    model: str = MODEL


def write(bundle: Path, folder: Path, **options: Any) -> Repository:
    """One model on the CPU, whose bundle is linked; with one thread, as the pipeline that answers are compared with."""
    usual: dict[str, Any] = {"model_name": MODEL, "link": True, "threads": 1}
    write_repository(RepositoryOptions(bundle, folder, **{**usual, **options}))
    return Repository(folder)
