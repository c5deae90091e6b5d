"""Norms of sums as one operator, against the same graphs with both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export.lowering.onnxruntime_attention import CONTRIB
from sts_export.lowering.onnxruntime_norms import fuse_norms
from tests.graphs.onnx_models import operators, serialized
from tests.lowering.test_onnxruntime_attention import LAYERS, VARIANTS, pair

WIDTH = 32
FUSED = f"{CONTRIB}::SkipSimplifiedLayerNormalization"


def model(kind: ir.DataType, *, residual_first: bool = True, weight: bool = False) -> ir.Model:
    """x, y -> sum * 2 (before or after the norm), norm(sum); with ``weight``, y is an initializer of one row."""
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(["rows", WIDTH]))
    y = ir.Value(name="y", type=ir.TensorType(kind), shape=ir.Shape(["rows", WIDTH]))
    first, second = (ir.node("Identity", [value], num_outputs=1) for value in (x, y))
    scale = ir.Value(name="scale", const_value=ir.tensor(np.linspace(0.5, 2, WIDTH).astype(kind.numpy()), name="scale"))
    row = ir.Value(name="row", const_value=ir.tensor(np.ones(WIDTH, kind.numpy()), name="row"))
    add = ir.node("Add", [first.outputs[0], row if weight else second.outputs[0]])
    norm = ir.node("RMSNormalization", [add.outputs[0], scale], {"axis": -1, "epsilon": 1e-5})
    double = ir.node("Add", [add.outputs[0], add.outputs[0]])
    tail = [double, norm] if residual_first else [norm, double]
    for node, name in ((norm, "normed"), (double, "doubled")):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, x.type, x.shape
    graph = ir.Graph(
        [x, y],
        [norm.outputs[0], double.outputs[0]],
        nodes=[first, second, add, *tail],
        initializers=[scale, row],
        opset_imports={"": 23, CONTRIB: 1},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def outputs(made: ir.Model, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = ort.InferenceSession(serialized(made), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT, ir.DataType.FLOAT16], ids=["float32", "float16"])
@pytest.mark.parametrize("residual_first", [True, False])
def test_same_norms_and_sums(kind: ir.DataType, residual_first: bool) -> None:
    """Whoever else takes the sum may come before the norm or after it."""
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((5, WIDTH)).astype(kind.numpy()) for name in "xy"}
    wanted = outputs(model(kind, residual_first=residual_first), feeds)
    made = model(kind, residual_first=residual_first)
    assert fuse_norms(made.graph)
    assert operators(serialized(made))[FUSED] == 1 and "RMSNormalization" not in operators(serialized(made))
    total = feeds["x"].astype(np.float64) + feeds["y"]
    by_hand = total / np.sqrt((total**2).mean(1, keepdims=True) + 1e-5) * np.linspace(0.5, 2, WIDTH)
    found = outputs(made, feeds)
    tolerance = 1e-5 if kind == ir.DataType.FLOAT else 4e-3
    for array in (wanted[0], found[0]):
        np.testing.assert_allclose(array, by_hand, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found[1], wanted[1])


def test_a_sum_with_a_weight_is_left_alone() -> None:
    """One row that is added to every row is no hidden state."""
    made = model(ir.DataType.FLOAT, weight=True)
    assert not fuse_norms(made.graph) and "RMSNormalization" in operators(serialized(made))


@pytest.mark.parametrize("name", ["gqa", "qwen"])
def test_decoder_layers(name: str) -> None:
    """All norms but the first of each part, and the last, which is of one row only."""
    found = VARIANTS[name]
    for graph, layers in (("llm_lower", found.prune_layer), ("llm_upper", LAYERS - found.prune_layer)):
        plain, fused = pair(name)[graph]
        last = int(graph == "llm_upper")
        assert operators(plain)["RMSNormalization"] == 2 * layers + last
        assert operators(fused)[FUSED] == 2 * layers - 1 and operators(fused)["RMSNormalization"] == 1 + last
