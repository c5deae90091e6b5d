"""Exports in the work folder: made once, and again where the model or the code has changed."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from scripts.demo_results.planning import Model, request
from scripts.demo_results.variants import Variant
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import replace_file

ROOT = Path(__file__).resolve().parents[2]


def bundle_name(asked: ExportRequest) -> str:
    """Of the folder: what was asked for, in words."""
    layer = None if asked.prune_layer is None else f"prune-layer-{asked.prune_layer}"
    choices = [f"{name}-{value}" for name, value in asked.choices.items()]
    words = (asked.method, asked.stage1, asked.stage2, layer, *choices, asked.dtype, asked.quantize)
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(word for word in words if word))


def bundle_of(variant: Variant, model: Model, work: Path, code: str) -> Path:
    """The folder of a variant's bundle, exported if need be.

    Args:
        code: :func:`code_digest`.

    Raises:
        StsExportError: as :func:`export`.
        OSError: the file system refuses.
    """
    asked = request(variant, model)
    folder = work / "bundles" / bundle_name(asked)
    made = folder.with_name(f"{folder.name}.sha256")
    wanted = _digest(json.dumps(asdict(asked)), code, _stamps(model.folder)).encode()
    if folder.is_dir() and made.is_file() and made.read_bytes() == wanted:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    export(replace(asked, output=folder, force=True))
    replace_file(made, wanted)
    return folder


def code_digest() -> str:
    """Of what exports are made by, and of the demo model's files."""
    digest = hashlib.sha256()
    for folder in ("sts_export", "graphs"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)} {file.stat().st_size};".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _stamps(checkpoint: Path) -> str:
    """Names, sizes and times of a checkpoint's files."""
    found = sorted(file for file in checkpoint.iterdir() if file.is_file())
    return json.dumps([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found])


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
