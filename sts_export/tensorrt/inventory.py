"""What a bundle has for TensorRT: built engines, and graphs with commands for machines without sts-export."""

from __future__ import annotations

from sts_export.bundle import GRAPHS, Bundle
from sts_export.tensorrt.module import RUNTIMES
from sts_export.tensorrt.record import ENGINES, PORTABLE, BuildRecord, bundle_digest, read_record


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
    if missing := [name for name in GRAPHS if name not in record.graphs]:
        notes.append(f"unfinished ({', '.join(missing)} missing)")
    if record.bundle != bundle_digest(bundle):
        notes.append("of another export")
    return ", ".join(notes)


def command_files(bundle: Bundle) -> list[str]:
    """Scripts of trtexec and Polygraphy commands, relative to the bundle."""
    return [str(file.relative_to(bundle.folder)) for file in sorted((bundle.folder / ENGINES).glob("commands-*.sh"))]
