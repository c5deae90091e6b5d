"""Repositories for Triton, and what they are made of that is only imitated."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import open_bundle
from sts_export.tensorrt.record import (
    BuildRecord,
    EngineRecord,
    bundle_digest,
    engines_folder,
    this_platform,
    write_record,
)
from sts_export.tensorrt.runtimes import Runtime
from sts_export.triton.repository.options import RepositoryOptions
from sts_export.triton.repository.writing import write_repository

MODEL = "m"


def write(bundle: Path, output: Path, **options: Any) -> Path:
    """A repository, whose model is called MODEL."""
    write_repository(RepositoryOptions(**{"bundle": bundle, "output": output, "model_name": MODEL, **options}))
    return output


def add_engines(bundle: Path, runtime: Runtime = "tensorrt", max_batch: int = 4) -> Path:
    """Folder of files that are none, with the record of a finished build."""
    opened = open_bundle(bundle)
    folder = engines_folder(opened, runtime, "gpu")
    folder.mkdir(parents=True)
    graphs = {}
    for name in opened.manifest.graphs:
        (folder / f"{name}.engine").write_bytes(b"engine")
        graphs[name] = EngineRecord(f"{name}.engine", 6, "0" * 64, "k", 1.0, True, False, False)
    digest, platform = bundle_digest(opened), this_platform()
    write_record(folder, BuildRecord(runtime, "11.1.0.106", "gpu", "GPU", platform, digest, max_batch, None, graphs))
    (folder / ".lock").touch()
    return folder


def write_wheel(file: Path, package: str = "sts_export", content: str = "sts_export/triton/__init__.py") -> Path:
    """With the two files that are looked at."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(content, "")
        name = package.replace("_", "-")
        archive.writestr(f"{package}-0.1.0.dist-info/METADATA", f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.1.0\n")
    return file


def files(folder: Path) -> set[str]:
    """Relative paths of everything below it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
