"""How many bytes of tensors a graph holds at once, by the shapes that ONNX Runtime gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import InlinePass

_VIEWS = ("Identity", "Reshape", "Squeeze", "Unsqueeze")


def held_bytes(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> int:
    """The most that is held while nodes run in order: each tensor until its last use, inputs and weights left out.

    Views take no room of their own.  What lives inside a loop's step is not seen.
    """
    flat = ir.to_proto(InlinePass()(ir.from_proto(model)).model)
    nodes = list(flat.graph.node)
    sizes = _sizes(flat, feeds)
    base: dict[str, str] = {}
    last: dict[str, int] = {}
    for number, node in enumerate(nodes):
        if node.op_type in _VIEWS:
            base[node.output[0]] = base.get(node.input[0], node.input[0])
        for name in [*_used(node), *node.output]:
            last[base.get(name, name)] = number
    most = now = 0
    for number, node in enumerate(nodes):
        now += sum(sizes.get(name, 0) for name in node.output if name not in base)
        most = max(most, now)
        now -= sum(sizes.get(name, 0) for name, end in last.items() if end == number)
    return most


def _used(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, in its bodies, too."""
    bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for body in bodies for inner in body.node for name in _used(inner))]


def _sizes(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of what each node gives."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {name: value.nbytes for name, value in zip(names, session.run(names, dict(feeds)), strict=True)}
