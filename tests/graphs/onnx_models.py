"""Models of the tests on ONNX Runtime: one call of a function, a graph with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.model import OPSET, STS_DOMAIN, parameters

# onnxruntime's names of numpy's types.
TYPES = {"float32": "FLOAT", "float16": "FLOAT16"}


def session(model: ir.Model, *, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_call(
    function: ir.Function,
    inputs: Sequence[tuple[str, str, Sequence[int | str]]],
    outputs: Sequence[str],
    *,
    optimized: bool = True,
    **attributes: Any,
) -> ort.InferenceSession:
    """A model of one call; inputs are (name, dtype, shape), outputs int64."""
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType[dtype]), shape=ir.Shape(shape)) for name, dtype, shape in inputs
    ]
    graph = ir.Graph(values, [], nodes=[], name="one_call", opset_imports={"": OPSET, STS_DOMAIN: 1})
    builder = GraphBuilder(graph)
    results = builder.op.call(function, *values, **attributes, _outputs=list(outputs))
    for name, result in zip(outputs, results if isinstance(results, (list, tuple)) else [results], strict=True):
        result.type = ir.TensorType(ir.DataType.INT64)
        builder.add_output(result, name)
    model = ir.Model(graph, ir_version=11)
    model.functions.update(builder.functions)
    return session(model, optimized=optimized)


def bind(model: ir.Model, weights: Mapping[str, NDArray[Any]]) -> None:
    """Give the graph's parameters their data; every name and shape must fit."""
    for parameter in parameters(model):
        data = weights[parameter.name].astype(parameter.dtype.numpy())
        assert list(data.shape) == [int(size) for size in parameter.shape], parameter.name
        parameter.const_value = ir.tensor(data, parameter.dtype, name=parameter.name)


def random_weights(model: ir.Model, seed: int = 5) -> dict[str, NDArray[np.float32]]:
    """Moderate values for all parameters."""
    rng = np.random.default_rng(seed)
    return {
        parameter.name: 0.3 * rng.standard_normal([int(size) for size in parameter.shape], np.float32)
        for parameter in parameters(model)
    }


def serialized(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def operators(graph: bytes) -> dict[str, int]:
    """How often each operator stands in the graph, domain included."""
    counts: dict[str, int] = {}
    for node in onnx.load_from_string(graph).graph.node:
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[kind] = counts.get(kind, 0) + 1
    return counts
