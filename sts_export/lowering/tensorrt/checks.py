"""What a node has to be for its older form; anything else is refused by name."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from sts_export.errors import BackendError
from sts_export.lowering.rewriter import attribute


def refuse(node: ir.Node, reason: str) -> BackendError:
    """The error of a node in a form that no graph of a bundle has."""
    return BackendError(
        f"{node.op_type} {node.name!r} with {reason} has no form for TensorRT before 10.15; use TensorRT 10.15 or later"
    )


def plain(node: ir.Node, **expected: Any) -> None:
    """Raises BackendError unless each attribute is as ``expected``, which are the values of absent ones too."""
    for name, value in expected.items():
        if attribute(node, name, value) != value:
            raise refuse(node, f"{name} = {attribute(node, name, value)}")


def required(node: ir.Node, index: int) -> ir.Value:
    """An input that must be there."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise refuse(node, f"no input {index}")
    return value


def fixed(node: ir.Node, value: ir.Value, axis: int) -> int:
    """A dimension that must be known."""
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise refuse(node, f"an unknown dimension {axis} of {value.name}")
    return size


def dtype_of(node: ir.Node, value: ir.Value) -> ir.DataType:
    """A type that must be known."""
    if value.dtype is None:
        raise refuse(node, f"an unknown type of {value.name}")
    return value.dtype
