"""Stages before the LLM that only choose, in TensorRT for RTX, which parses and builds without a GPU; nothing is run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from sts_export.pruning.stage import Stage1
from sts_export.pruning.stage1.cls_attention import ClsAttention
from sts_export.pruning.stage1.divprune import DivPrune
from sts_export.pruning.stage1.hiprune import HiPrune
from sts_export.pruning.stage1.random import Random
from sts_export.pruning.stage1.received_attention import ReceivedAttention
from sts_export.pruning.stage1.residual_qr import ResidualQr
from tests.graphs.onnx_models import serialized
from tests.pruning.stage1.stage_graphs import stage_model

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")

from tests.support.tensorrt_rtx import build, parse  # needs tensorrt_rtx

LOOPS = {"divprune": 1, "residual-qr": 2}
STAGES = [ClsAttention(), ReceivedAttention(), HiPrune(), DivPrune(), ResidualQr(), Random()]


def check(stage: Stage1, kind: ir.DataType, folder: Path, loops: int, *, max_rows: int) -> None:
    """It parses, its choices depend on all that it needs, and an engine comes out."""
    (folder / "stage.onnx").write_bytes(serialized(stage_model(stage, kind, width=16, max_rows=max_rows)))
    parsed = parse(folder / "stage.onnx")
    assert parsed.count()["TRIP_LIMIT"] >= loops
    for name in sorted(stage.needs) + ([] if stage.needs else ["features"]):
        assert parsed.reachable_outputs(name) == {"out_chosen"}, name
    profile = {"crops": (1, 1, 5), "rows": (4, 64, max_rows), "steps": (1, 3, 4), "hidden": (8, 8, 8)}
    assert len(build(parsed, [profile])) > 1000


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_parses_and_builds(stage: Stage1, kind: ir.DataType, tmp_path: Path) -> None:
    check(stage, kind, tmp_path, LOOPS.get(stage.name, 0), max_rows=90)


def test_divprune_of_very_large_pictures(tmp_path: Path) -> None:
    check(DivPrune(), ir.DataType.FLOAT16, tmp_path, 2, max_rows=16384)
