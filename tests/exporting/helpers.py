"""Requests, and what lies in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sts_export.exporting.exporter import ExportRequest
from sts_export.families import llava


def files(folder: Path) -> dict[str, bytes]:
    """Everything below ``folder``: name -> content."""
    return {
        str(file.relative_to(folder)): b"folder" if file.is_dir() else file.read_bytes() for file in sorted(folder.rglob("*"))
    }


def request(checkpoint: Path, output: Path, **options: Any) -> ExportRequest:
    return ExportRequest(str(checkpoint), output, **{"budget": "12", **options})


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def source_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        llava.canonical_name(name): value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()
    }
