"""`sts-export verify --backend tensorrt|tensorrt-rtx`: engines against ONNX Runtime, then answers against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import open_bundle
from sts_export.pruning.per_request import Budget, Counts
from sts_export.tensorrt.runtimes import Runtime
from sts_export.verification.answers import VerifyReport, format_report, verify
from sts_export.verification.engines import CompareReport, compare_engines, format_comparison


@dataclass(frozen=True)
class EnginesReport:
    """Both comparisons.

    Args:
        answers: whole answers against the PyTorch reference; None where that cannot run.
        left_out: why not.
    """

    graphs: CompareReport
    answers: VerifyReport | None
    left_out: str | None = None

    @property
    def passed(self) -> bool:
        return self.graphs.passed and (self.answers is None or self.answers.passed)

    def to_json(self) -> dict[str, Any]:
        answers = None if self.answers is None else self.answers.to_json()
        return {"passed": self.passed, "graphs": self.graphs.to_json(), "answers": answers, "left_out": self.left_out}


def verify_engines(
    bundle: str | Path,
    runtime: Runtime,
    checkpoint: str | None = None,
    *,
    images: Sequence[str] = (),
    prompts: Sequence[str] = (),
    pairs: int = 4,
    max_new_tokens: int = 16,
    budget: Budget | None = None,
    keep: Counts | None = None,
) -> EnginesReport:
    """Graph by graph with the first image and prompt; then as :func:`sts_export.verification.answers.verify`, where PyTorch
    and the source checkpoint are at hand: a machine that only runs engines need not have them.  Graphs run at the exported
    budget, answers at the one that is given.

    Raises:
        RequestError, BundleError, BackendError: as :func:`compare_engines` and :func:`sts_export.verification.answers.verify`.
    """
    graphs = compare_engines(bundle, runtime, image=next(iter(images), None), prompt=next(iter(prompts), None))
    if (missing := _missing(bundle, checkpoint)) is not None:
        return EnginesReport(graphs, None, missing)
    answers = verify(
        bundle,
        checkpoint,
        images=images,
        prompts=prompts,
        pairs=pairs,
        max_new_tokens=max_new_tokens,
        backend=runtime,
        budget=budget,
        keep=keep,
    )
    return EnginesReport(graphs, answers)


def _missing(bundle: str | Path, checkpoint: str | None) -> str | None:
    """What the reference lacks here; a checkpoint that was named has to be there."""
    if find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'sts-export[reference]'"
    folder = Path(open_bundle(bundle).manifest.source.folder)
    if checkpoint is None and not folder.is_dir():
        return f"the source checkpoint {folder} is not here; give it with --checkpoint"
    return None


def format_engines(report: EnginesReport) -> str:
    """Tables for people."""
    lines = [format_comparison(report.graphs)]
    if report.answers is not None:
        lines.append(format_report(report.answers))
    else:
        lines.append(f"answers were not compared with the reference: {report.left_out}")
    return "\n\n".join(lines)
