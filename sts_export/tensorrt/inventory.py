"""What a bundle has for TensorRT: built engines, and graphs with commands for machines without sts-export."""

from __future__ import annotations

import re

from sts_export.bundle.description import Line
from sts_export.bundle.manifest import Bundle
from sts_export.bundle.records import record_file
from sts_export.errors import BundleError
from sts_export.tensorrt.record import ENGINES, PORTABLE, BuildRecord, bundle_digest, read_record
from sts_export.tensorrt.runtimes import RUNTIMES


def describe_engines(bundle: Bundle) -> list[Line]:
    """Engines and commands, for people."""
    commands = command_files(bundle)
    return [
        *(("engines", text) for text in engine_lines(bundle)),
        *([("commands", ", ".join(commands))] if commands else []),
    ]


def engine_lines(bundle: Bundle) -> list[str]:
    """A line for each folder of engines, whether or not they fit this machine."""
    folders = [folder for runtime in RUNTIMES for folder in sorted((bundle.folder / ENGINES / runtime).glob("*/"))]
    lines = []
    for folder in folders:
        record = read_record(folder)
        if record is None:
            lines.append(f"{folder.relative_to(bundle.folder)}: no build record that this version reads")
        else:
            lines.append(_engines(bundle, record))
    return lines


def _engines(bundle: Bundle, record: BuildRecord) -> str:
    fits = record.gpu or ("any GPU from Ampere on" if record.target == PORTABLE else record.target)
    size = sum(engine.size for engine in record.graphs.values()) / 1e6
    plugins = "with plugins" if record.plugins is not None else "without plugins"
    notes = [f"{record.runtime} {record.tensorrt}", f"for {fits}", record.platform, f"batches up to {record.max_batch}"]
    notes += [f"{size:.1f} MB", plugins]
    if missing := [name for name in bundle.manifest.graphs if name not in record.graphs]:
        notes.append(f"unfinished ({', '.join(missing)} missing)")
    if record.bundle != bundle_digest(bundle):
        notes.append("of another export")
    return ", ".join(notes)


def check_engines(bundle: Bundle) -> int:
    """Compare every recorded engine and plugin library with its sha256; how many there are.

    Raises:
        BundleError: one is missing or was altered.
    """
    checked = 0
    for runtime in RUNTIMES:
        for folder in sorted((bundle.folder / ENGINES / runtime).glob("*/")):
            record = read_record(folder)
            if record is None:
                continue
            digests = {engine.file: engine.sha256 for engine in record.graphs.values()}
            if record.plugins is not None:
                digests[record.plugins.file] = record.plugins.sha256
            for name, digest in digests.items():
                file = folder / name
                if not file.is_file() or record_file(file).sha256 != digest:
                    wrong = "was altered" if file.is_file() else "is missing"
                    command = f"sts-export build {bundle.folder} --runtime {runtime} --force"
                    raise BundleError(f"{file} {wrong}; build it again: {command}")
            checked += len(digests)
    return checked


def command_files(bundle: Bundle) -> list[str]:
    """Scripts of trtexec and Polygraphy commands, relative to the bundle; 10.3 stands before 10.15."""
    files = sorted((bundle.folder / ENGINES).glob("commands-*.sh"), key=lambda file: _by_number(file.name))
    return [str(file.relative_to(bundle.folder)) for file in files]


def _by_number(name: str) -> list[tuple[str, int]]:
    """Text and the number behind it, in turn."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", name)]
