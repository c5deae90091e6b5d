"""ONNX model-local functions of the project's own domain, with bodies of standard operators.

ONNX Runtime inlines the bodies; TensorRT prefers a registered plugin of the same name and domain.  So one file is
portable and takes the fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
from onnxscript import build_function

from sts_export.graphs.layers import Op
from sts_export.graphs.model import OPSET, STS_DOMAIN


def tensor(name: str, kind: ir.DataType | None = None, *shape: int | str) -> ir.Value:
    """An input of a function or a subgraph; ``kind`` is None where the function takes several types of any shape."""
    if kind is None:
        return ir.Value(name=name)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def attribute(op: Op, kind: str, name: str) -> ir.Value:
    """Inside a body the function's attribute ``name`` as a scalar; ``kind`` is ``value_int`` or ``value_float``."""
    attribute_type = {"value_int": ir.AttributeType.INT, "value_float": ir.AttributeType.FLOAT}[kind]
    scalar = tensor(f"{name}_attribute", ir.DataType.INT64 if kind == "value_int" else ir.DataType.FLOAT)
    node = ir.Node("", "Constant", [], [ir.RefAttr(kind, name, attribute_type)], outputs=[scalar], version=OPSET)
    op.builder.graph.append(node)
    return scalar


def function(
    name: str, body: Callable[..., list[ir.Value]], inputs: Sequence[ir.Value], attributes: Mapping[str, ir.AttributeType]
) -> ir.Function:
    """``sts::NAME`` with the body that ``body(op, *inputs)`` makes."""
    made = build_function(
        body,
        list(inputs),
        domain=STS_DOMAIN,
        name=name,
        attributes=[ir.Attr(key, kind, None) for key, kind in attributes.items()],
        opset_imports={"": OPSET},
    )
    _qualify(made)
    return made


def _qualify(function: ir.Function) -> None:
    """Give values of the body names that no graph has which calls it, and those of a loop in it names that only it has.

    They are names of their own by the standard.  TensorRT's parser yet takes a body's constant for one of the same name that
    the caller has after the call.  The builder counts the values of a loop from the beginning.
    """
    interface = {*function.inputs, *function.outputs}
    for node in ir.traversal.RecursiveGraphIterator(function):
        inside = node.graph
        loop = f"{inside.name}." if isinstance(inside, ir.Graph) and inside is not function.graph else ""
        for value in node.outputs:
            if value not in interface:
                value.name = f"{function.name}.{loop}{value.name}"
