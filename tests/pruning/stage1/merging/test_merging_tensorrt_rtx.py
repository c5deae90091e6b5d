"""Stages that merge, read the prompt or are trained, in TensorRT for RTX, which builds without a GPU; nothing is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sts_export.pruning.stage import Stage1
from sts_export.pruning.stage1.cdpruner import CDPruner
from sts_export.pruning.stage1.learned import Learned
from sts_export.pruning.stage1.visionzip import VisionZip
from sts_export.pruning.stage1.vscan import VScan
from tests.graphs.onnx_models import bind, serialized
from tests.pruning.stage1.stage_graphs import stage_model

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")

from tests.support.tensorrt_rtx import build, parse  # needs tensorrt_rtx

WIDTH = 16
STAGES: list[tuple[Stage1, int]] = [
    (VisionZip(), 1),
    (VisionZip("received"), 5),
    (VScan(), 5),
    (VScan("received"), 1),
    (CDPruner(), 5),
    (Learned(), 5),
]


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16"])
@pytest.mark.parametrize(("stage", "crops"), STAGES, ids=lambda value: getattr(value, "name", str(value)))
def test_parses_and_builds(stage: Stage1, crops: int, dtype: str, tmp_path: Path) -> None:
    """What it chooses depends on all that it needs but the CLS token, which the selector takes itself."""
    model = stage_model(stage, ir.DataType[dtype], width=WIDTH, max_crops=crops)
    bind(model, {name: np.ones(shape, np.float32) for name, shape in stage.own_weights(WIDTH).items()})
    (tmp_path / "stage.onnx").write_bytes(serialized(model))
    parsed = parse(tmp_path / "stage.onnx")
    given = {"features", "candidates", "quota", *stage.needs} & {tensor.name for tensor in parsed.inputs}
    for name in given - {"cls_features"}:
        assert parsed.reachable_outputs(name), name
    sizes = {"crops": (1, crops, crops), "rows": (4, 64, 90), "steps": (1, 33, 40)}
    sizes |= {"text": (1, 8, 40), "hidden": (8, 8, 8), "head_dim": (8, 8, 8)}
    assert len(build(parsed, [sizes])) > 1000
