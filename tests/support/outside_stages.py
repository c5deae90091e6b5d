"""A distribution as another package would be: two stages, their reference, a method, and entry points that name them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "thin-stages"

_STAGES = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from sts_export.graphs.needs import OWN_QUERY_KEY
from sts_export.pruning.methods import Method
from sts_export.pruning.stage import Stage1, Stage2


@dataclass(frozen=True)
class Edge(Stage1):
    name: ClassVar[str] = "edge"
    summary: ClassVar[str] = "tokens of one end of the picture"
    end: Literal["first", "last"] = "first"
    skip: int = 0

    def build(self, op, inputs):
        import onnx_ir as ir

        from sts_export.graphs.functions import function, tensor
        from sts_export.graphs.layers import dims
        from sts_export.graphs.stages import Stage1Choice

        def body(op, candidates, quota):
            one = op.Constant(value_int=1)
            count = op.Squeeze(dims(op, candidates, 1, 2))
            row = op.Cast(op.Range(op.Constant(value_int=0), count, one), to=ir.DataType.FLOAT)
            skipped = op.Less(row, op.Constant(value_float=float(self.skip)))
            rank = row if self.end == "last" else op.Neg(row)
            rank = op.Where(skipped, op.Sub(rank, op.Constant(value_float=1e5)), rank)
            rank = op.Where(candidates, rank, op.Constant(value_float=-1e30))
            _, chosen = op.TopK(rank, dims(op, quota, 1, 2), axis=1, _outputs=["rank_of_chosen", "chosen_rows"])
            return [chosen]

        kinds = [tensor("candidates", ir.DataType.BOOL, "c", "r"), tensor("quota", ir.DataType.BOOL, "c", "s")]
        edge = function("EdgeRows", body, kinds, {})
        return Stage1Choice(op.call(edge, inputs.candidates, inputs.quota, _outputs=["chosen"]))


@dataclass(frozen=True)
class LargestKey(Stage2):
    name: ClassVar[str] = "largest-key"
    summary: ClassVar[str] = "visual rows of largest keys"
    power: float = 2.0

    @property
    def needs(self):
        return frozenset({OWN_QUERY_KEY})

    def build(self, op, inputs):
        import onnx_ir as ir

        from sts_export.graphs.survivors import keep_largest, prompt_rows

        key = op.Abs(op.Cast(inputs.key, to=ir.DataType.FLOAT))
        scores = op.ReduceSum(op.Pow(key, op.Constant(value_float=self.power)), op.Constant(value_ints=[1, 3]), keepdims=0)
        rows = prompt_rows(op, inputs.attention_mask)
        return keep_largest(op, scores, rows, inputs.visual_mask, inputs.visual_embeds, inputs.stage2_slots)


THIN = Method("thin", "edge, then largest keys", "edge:end=last", "largest-key:power=1", ratio=0.5)
"""

_REFERENCE = """
import torch

from sts_export.reference import Choices, Kept


def edge(crop, keep, /, *, end, skip):
    kept = list(range(skip, len(crop.features)))
    kept = kept[::-1] if end == "last" else kept
    return Choices(torch.tensor([*kept, *range(skip)][:keep]))


def largest_key(prefill, keep, /, *, power):
    _, key = prefill.own()
    scores = key.float().abs().pow(power).sum(dim=(0, 2))[prefill.visual]
    return Kept(scores.sort(descending=True, stable=True).indices[:keep].sort().values, scores)
"""

STAGES = {
    "stage1.edge": "thin_stages.stages:Edge",
    "stage2.largest-key": "thin_stages.stages:LargestKey",
    "method.thin": "thin_stages.stages:THIN",
}
REFERENCE = {"stage1.edge": "thin_stages.reference:edge", "stage2.largest-key": "thin_stages.reference:largest_key"}


def write_distribution(
    folder: Path,
    name: str = PACKAGE,
    files: Mapping[str, str] | None = None,
    stages: Mapping[str, str] = STAGES,
    reference: Mapping[str, str] = REFERENCE,
) -> Path:
    """A folder for sys.path with the package and its metadata; ``files``: its modules, by default the two stages."""
    package = folder / name.replace("-", "_")
    package.mkdir(parents=True)
    for file, text in {"__init__": "", **(files or {"stages": _STAGES, "reference": _REFERENCE})}.items():
        (package / f"{file}.py").write_text(text)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = {"sts_export.stages": stages, "sts_export.reference_stages": reference}
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in each.items()) for group, each in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def command(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``sts-export`` in a process of its own, with the distributions of ``path`` installed."""
    paths = [*([] if path is None else [str(path)]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-m", "sts_export.cli", *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
