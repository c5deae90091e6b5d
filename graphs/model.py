"""From a contract and a module to an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.layers import DTYPES

OPSET = 24
IR_VERSION = 11
STS_DOMAIN = "sts"


def value(spec: TensorSpec) -> ir.Value:
    """A graph input with the name, shape and dtype of ``spec``."""
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(DTYPES[spec.dtype]))


def build_model(contract: GraphContract, forward: Callable[..., Sequence[ir.Value]]) -> ir.Model:
    """Trace ``forward(op, *inputs) -> outputs`` into a model whose interface is exactly ``contract``.

    Parameters become initializers without data, named by their path in the module tree.
    """
    inputs = [value(spec) for spec in contract.inputs]
    graph = ir.Graph(inputs=inputs, outputs=[], nodes=[], name=contract.name, opset_imports={"": OPSET, STS_DOMAIN: 1})
    builder = GraphBuilder(graph)
    results = forward(builder.op, *inputs)
    for result, spec in zip(results, contract.outputs, strict=True):
        result.type = ir.TensorType(DTYPES[spec.dtype])
        result.shape = ir.Shape(spec.shape)
        builder.add_output(result, spec.name)
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="sts-export")
    model.functions.update(builder.functions)
    if not builder.functions:
        del graph.opset_imports[STS_DOMAIN]
    return model


def parameters(model: ir.Model) -> list[ir.Value]:
    """The model's initializers that still need data from the checkpoint."""
    return [item for item in model.graph.initializers.values() if isinstance(item, nn.Parameter) and item.const_value is None]
