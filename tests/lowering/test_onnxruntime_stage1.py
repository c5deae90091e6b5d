"""Stage 1 of bundles for very large pictures on CUDA: the form with short steps wherever a picture allows it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from sts_export.graphs.configs import Dtype
from sts_export.graphs.selector import selector
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from sts_export.pruning.stage1 import repulsion
from sts_export.reference import repulsion_select
from tests.graphs.onnx_models import operators, serialized

WIDTH, EPSILON, LARGEST = 16, 1e-6, 16384
QWEN = QwenVisionConfig(14, 2, 2, 8, 32, 32, 2, 2, (1,), WIDTH, "silu", 64)
SHORT = "RepulsionSelectShortSteps"


@cache
def graph(dtype: Dtype = "float32", max_rows: int = LARGEST) -> bytes:
    stage1 = repulsion.Repulsion("mean", EPSILON)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "width": WIDTH, "max_crops": 1, "max_rows": max_rows}
    outputs = qwen_encoder_contract(QWEN, dtype).outputs
    return serialized(selector(outputs, None, dtype, prefix="p", stage1=stage1.build, **sizes))


def kept(content: bytes, features: NDArray[Any], keep: int) -> list[int]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    rows = features.shape[1]
    feeds = {"visual_features": features, "token_order": np.arange(rows), "quota": np.ones((1, keep), bool)}
    found: list[int] = session.run(None, feeds)[0].tolist()
    return found


def features_of(rows: int, dtype: Dtype, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((1, rows, WIDTH)).astype(dtype)


def with_wrong_branch(content: bytes, branch: str) -> bytes:
    """The graph with another epsilon in one branch, which chooses others."""
    model = onnx.load_from_string(content)
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    (call,) = next(item for item in choice.attribute if item.name == branch).g.node
    call.attribute[0].f = 1e6
    wrong: bytes = model.SerializeToString()
    return wrong


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "keep"), [(1, 1), (40, 1), (90, 30), (90, 90)])
def test_the_reference_chooses_the_same(dtype: Dtype, rows: int, keep: int) -> None:
    features = features_of(rows, dtype, seed=rows)
    wanted = repulsion_select(torch.from_numpy(features[0]), keep, epsilon=EPSILON).tolist()
    assert kept(for_onnxruntime(graph(dtype), 1, "cuda"), features, keep) == wanted


@pytest.mark.parametrize(("limit", "branch"), [(90 * 90, "else_branch"), (90 * 90 - 1, "then_branch")])
def test_the_size_of_the_picture_decides(monkeypatch: pytest.MonkeyPatch, limit: int, branch: str) -> None:
    """The other branch may be wrong; the one that is taken may not."""
    monkeypatch.setattr(repulsion, "MATRIX_LIMIT", limit)
    plain = graph()  # by row with either limit
    changed = for_onnxruntime(plain, 1, "cuda")
    features = features_of(90, "float32")
    wanted = kept(plain, features, 20)
    assert kept(changed, features, 20) == wanted
    assert kept(with_wrong_branch(changed, branch), features, 20) == wanted
    other = {"then_branch": "else_branch", "else_branch": "then_branch"}[branch]
    assert kept(with_wrong_branch(changed, other), features, 20) != wanted


def test_both_forms_are_in_the_graph_and_nothing_else_changes() -> None:
    plain, changed = onnx.load_from_string(graph()), onnx.load_from_string(for_onnxruntime(graph(), 1, "cuda"))
    onnx.checker.check_model(changed)
    assert {function.name for function in changed.functions} == {"RepulsionSelect", SHORT}
    assert list(changed.graph.input) == list(plain.graph.input) and list(changed.graph.output) == list(plain.graph.output)
    before, after = operators(graph()), operators(for_onnxruntime(graph(), 1, "cuda"))
    assert before["sts::RepulsionSelect"] == after["If"] == 1


def test_selectors_that_stay_as_they_are() -> None:
    """On the CPU, with kernels of their own, and with short steps in the bundle already."""
    assert for_onnxruntime(graph(), 1, "cpu") is graph()
    assert for_onnxruntime(graph(), 1, "cuda", operators=True) is graph()
    short = graph(max_rows=4096)
    assert for_onnxruntime(short, 1, "cuda") is short
