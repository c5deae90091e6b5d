"""Model repositories of tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sts_export.triton.config import Instances, config_text
from sts_export.triton.settings import ModelSettings
from sts_export.triton.tensors import INPUTS, OUTPUTS

MODEL = "demo"


@dataclass(frozen=True)
class Repository:
    folder: Path
    model: str = MODEL


def write(bundle: Path, folder: Path, *, instances: int = 1, **settings: Any) -> Repository:
    """A repository with one model on the CPU, whose bundle is linked."""
    chosen = ModelSettings(threads=1, **settings)
    own = folder / MODEL
    (own / "1").mkdir(parents=True)
    text = config_text(
        MODEL, INPUTS, OUTPUTS, chosen.parameters(), Instances(instances), max_batch_size=chosen.slots, decoupled=True
    )
    (own / "config.pbtxt").write_text(text)
    (own / "1" / "model.py").write_text("from sts_export.triton.model.backend import TritonPythonModel\n")
    (own / "1" / "bundle").symlink_to(bundle)
    return Repository(folder)
