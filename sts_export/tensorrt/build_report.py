"""What a build made, in words."""

from __future__ import annotations

from sts_export.tensorrt.build import BuildReport
from sts_export.tensorrt.build_options import TOPK_LIMIT
from sts_export.tensorrt.plugins import WITHOUT_IT
from sts_export.tensorrt.record import PORTABLE


def summary(report: BuildReport) -> str:
    """A table of the engines."""
    record = report.record
    fits = record.gpu or ("any GPU from Ampere on" if record.target == PORTABLE else record.target)
    lines = [f"{report.folder}: {record.runtime} {record.tensorrt}, for {fits}, batches up to {record.max_batch}"]
    for name, engine in record.graphs.items():
        notes = ["up to date"] if name in report.reused else [f"{engine.seconds:.1f} s"]
        if engine.plugins:
            notes.append("with plugins")
        if engine.decomposed_attention and name != "selector":
            notes.append("attention from primitive operators")
        if not engine.aliased_caches and name.startswith("llm"):
            notes.append("two buffers for each cache")
        lines.append(f"  {name:<15}{engine.size / 1e6:>9.1f} MB  {', '.join(notes)}")
    return "\n".join(lines)


def warnings(report: BuildReport) -> list[str]:
    """What the user should know about the engines' speed and limits."""
    notes = [f"note: {note}" for note in report.notes]
    if report.record.plugins is None:
        if report.record.runtime == "tensorrt":
            notes.append(f"note: {WITHOUT_IT}")
        if report.survivors > TOPK_LIMIT:
            notes.append(
                f"note: without plugins TensorRT sorts at most {TOPK_LIMIT} rows: prompts of which more survive stage 2 fail"
            )
    return notes
