"""The rewriter: where nodes go, what they are called, and whose place a value takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sts_export.lowering.rewriter import Rewriter, attribute


def small_model() -> ir.Model:
    """y = softplus(x) + softplus(x), a graph output from a node that has users too."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    small (float[n] x) => (float[n] y, float[n] z) { z = Softplus(x)  y = Add(z, z) }
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    answers: list[np.ndarray] = ort.InferenceSession(proto.SerializeToString()).run(["y", "z"], {"x": x})
    return answers


@pytest.mark.parametrize("named", [True, False])
def test_a_node_is_replaced(named: bool) -> None:
    """Users, graph outputs, name, type and shape go over; the new nodes stand where the old one stood."""
    model = small_model()
    softplus = model.graph[0]
    softplus.name = "layer"
    shape, kind = softplus.outputs[0].shape, softplus.outputs[0].type
    rewriter = Rewriter(model.graph, named=named)
    rewriter.start(softplus)
    result = rewriter.op("Log", rewriter.op("Add", rewriter.op("Exp", softplus.inputs[0]), rewriter.float32(1.0)))
    rewriter.replace(result)
    assert [node.op_type for node in model.graph] == ["Exp", "Constant", "Add", "Log", "Add"]
    assert (result.name, result.shape, result.type) == ("z", shape, kind)
    if named:
        assert [node.name for node in model.graph][:4] == ["layer/Exp_0", "layer/Constant_1", "layer/Add_2", "layer/Log_3"]
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    y, z = run(model, x)
    np.testing.assert_allclose(z, np.log1p(np.exp(x)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y, 2 * z, rtol=1e-6)


def test_what_is_shared_is_inserted_once() -> None:
    rewriter = Rewriter(small_model().graph, named=True)
    rewriter.start(rewriter.graph[1])
    assert rewriter.int64([1]) is rewriter.int64([1]) and rewriter.int64(1) is rewriter.int64(1)
    assert rewriter.int64([1]) is not rewriter.int64(1) and rewriter.float32(1) is not rewriter.int64(1)
    assert [node.op_type for node in rewriter.graph].count("Constant") == 3


def test_domains_outputs_and_attributes() -> None:
    rewriter = Rewriter(small_model().graph, named=True)
    rewriter.start(rewriter.graph[0])
    first, second = rewriter.ops("Odd", None, outputs=2, domain="somewhere", scale=0.5, sizes=[1, 2], count=3)
    node = first.producer()
    assert node is not None and node is second.producer() and (node.domain, node.op_type) == ("somewhere", "Odd")
    assert [attribute(node, name, None) for name in ("scale", "sizes", "count", "absent")] == [0.5, [1, 2], 3, None]
