"""Models of one operator, which only a library can run: there is no function in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

Dims = Sequence[int | str | None]
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Operator:
    """What a node of it takes and gives; inputs of KINDS are named without their type."""

    name: str
    attribute: str
    inputs: Mapping[str, tuple[int | None, Dims]]
    outputs: Sequence[str]


REPULSION = Operator(
    "RepulsionSelect",
    "epsilon",
    {
        "features": (None, ("crops", "rows", "width")),
        "first": (TensorProto.INT64, ("crops",)),
        "candidates": (TensorProto.BOOL, ("crops", "rows")),
        "quota": (TensorProto.BOOL, ("crops", "steps")),
    },
    ["chosen"],
)
LAST_TOKEN = Operator(
    "LastTokenTopK",
    "scale",
    {
        "query": (None, ("batch", "heads", "rows", "head_dim")),
        "key": (None, ("batch", "kv_heads", "rows", "head_dim")),
        "attention_mask": (TensorProto.INT64, ("batch", "rows")),
        "visual_mask": (TensorProto.BOOL, ("batch", "rows")),
        "visual_embeds": (None, ("batch", "visual", "hidden")),
        "stage2_slots": (TensorProto.INT64, ("visual_keep",)),
    },
    ["kept_rows", "last_row"],
)


def operator_model(
    operator: Operator,
    dtype: str = "float32",
    attributes: Mapping[str, Any] | None = None,
    *,
    shapes: Mapping[str, Dims | None] | None = None,
    types: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model of one node.

    Args:
        dtype: of the inputs of KINDS.  Those of bfloat16, which numpy lacks, are float32 before a Cast.
        attributes: of the node; None is 1e-6 or so.
        shapes: of some inputs, other than the usual ones; None: of unknown rank.
        types: of some inputs, other than the usual ones.
    """
    nodes, values, names = [], [], []
    for name, (kind, dims) in operator.inputs.items():
        wanted = {**dict.fromkeys(operator.inputs, kind or KINDS[dtype]), **(types or {})}[name]
        given = TensorProto.FLOAT if wanted == TensorProto.BFLOAT16 else wanted
        values.append(helper.make_tensor_value_info(name, given, (shapes or {}).get(name, dims)))
        names.append(name if wanted == given else f"{name}_cast")
        if wanted != given:
            nodes.append(helper.make_node("Cast", [name], names[-1:], to=wanted))
    given_attributes = {operator.attribute: 1e-6} if attributes is None else attributes
    nodes.append(helper.make_node(operator.name, names, operator.outputs, domain="sts", **given_attributes))
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in operator.outputs]
    graph = helper.make_graph(nodes, "operator", values, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("sts", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def with_library(model: onnx.ModelProto, library: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised, too
    options.intra_op_num_threads = 1
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
