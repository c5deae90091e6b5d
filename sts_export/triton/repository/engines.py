"""Engines that a bundle brings for a runtime of TensorRT, as far as that shows without TensorRT and without a GPU."""

from __future__ import annotations

from sts_export.bundle.manifest import Bundle
from sts_export.errors import BundleError
from sts_export.tensorrt.record import ENGINES, BuildRecord, bundle_digest, read_record
from sts_export.tensorrt.runtimes import Runtime


def built_engines(bundle: Bundle, runtime: Runtime) -> list[BuildRecord]:
    """Records of the folders, one a kind of GPU, that have all engines of this export."""
    digest, found = bundle_digest(bundle), []
    for folder in sorted((bundle.folder / ENGINES / runtime).glob("*")):
        record = read_record(folder)
        if record is None or record.runtime != runtime or record.bundle != digest:
            continue
        if all(
            name in record.graphs
            and (file := folder / record.graphs[name].file).is_file()
            and file.stat().st_size == record.graphs[name].size
            for name in bundle.manifest.graphs
        ):
            found.append(record)
    return found


def check_engines(bundle: Bundle, runtime: Runtime) -> list[BuildRecord]:
    """As :func:`built_engines`.

    Raises:
        BundleError: there are none, or only some that do not fit the bundle.
    """
    records = built_engines(bundle, runtime)
    if not records:
        there = (bundle.folder / ENGINES / runtime).is_dir()
        lack = "are not complete, or of another export" if there else "are missing"
        raise BundleError(
            f"{runtime} engines of {bundle.folder} {lack}; build them with sts-export build {bundle.folder} --runtime "
            f"{runtime}, or let the container do it with --build-at-start"
        )
    return records
