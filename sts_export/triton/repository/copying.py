"""The bundle in the repository: a copy of what a server needs, or a link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sts_export.backends.onnxruntime.operators import LIBRARY as OPERATORS
from sts_export.bundle.manifest import MANIFEST, Bundle
from sts_export.errors import OutputError
from sts_export.tensorrt.plugins import LIBRARY as PLUGINS
from sts_export.tensorrt.record import ENGINES
from sts_export.tensorrt.runtimes import Runtime


def bundle_files(bundle: Bundle, engines: Runtime | None) -> Iterator[Path]:
    """Relative paths: what the manifest names, libraries of kernels, and engines.  Graphs for other tools stay where they are.

    Args:
        engines: the runtime whose engines go with it; None: none.
    """
    manifest = bundle.manifest
    yield Path(MANIFEST)
    for record in (*manifest.graph_files.values(), *manifest.companions, *manifest.weights.files):
        yield Path(record.file)
    yield from (Path(name) for name in (PLUGINS, OPERATORS.file_name) if (bundle.folder / name).is_file())
    if engines is not None:
        for file in sorted((bundle.folder / ENGINES / engines).rglob("*")):
            if file.is_file() and not file.name.startswith("."):  # locks, and parts of files
                yield file.relative_to(bundle.folder)


def copy_bundle(bundle: Bundle, target: Path, engines: Runtime | None) -> None:
    """Plain copies: a change of the one is none of the other.

    Raises:
        OutputError: there is no room.
        OSError: the file system refuses.
    """
    files = sorted(set(bundle_files(bundle, engines)))
    needed = sum((bundle.folder / file).stat().st_size for file in files)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(
            f"no room for the bundle: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free; free space, choose another "
            "--output or use --link"
        )
    for file in files:
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / file, place)


def link_bundle(bundle: Bundle, target: Path) -> None:
    """One symbolic link, from wherever the repository is moved to on this machine."""
    target.symlink_to(os.path.realpath(bundle.folder), target_is_directory=True)
