"""Insert operators in front of a node, and share between layers what is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sts_export.errors import BackendError


class Rewriter:
    """Nodes are taken in the graph's order, so that what was inserted for an earlier one may serve a later one.

    New nodes and values are named after the node that they stand for, with a running number: names are unique, the same in
    every run, and say in TensorRT's logs and profiles which layer they belong to.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._node: ir.Node | None = None
        self._shared: dict[Hashable, ir.Value] = {}
        self._count = 0

    def start(self, node: ir.Node) -> None:
        """Insert in front of ``node`` from now on."""
        self._node = node

    def op(self, operator: str, *inputs: ir.Value | None, **attributes: int | float | Sequence[int]) -> ir.Value:
        """The output of a new node."""
        return self.ops(operator, *inputs, outputs=1, **attributes)[0]

    def ops(
        self, operator: str, *inputs: ir.Value | None, outputs: int, **attributes: int | float | Sequence[int]
    ) -> Sequence[ir.Value]:
        """All outputs of a new node."""
        assert self._node is not None
        name = f"{self._node.name}/{operator}_{self._count}"
        self._count += 1
        values = [ir.Value(name=name if index == 0 else f"{name}.{index}") for index in range(outputs)]
        node = ir.Node("", operator, inputs, ir.convenience.convert_attributes(attributes), outputs=values, name=name)
        self.graph.insert_before(self._node, node)
        return values

    def int64(self, numbers: int | Sequence[int]) -> ir.Value:
        """A constant, [] or [n] int64; one node for all its users."""
        if isinstance(numbers, int):
            return self.shared(("int64", numbers), lambda: self.op("Constant", value_int=numbers))
        return self.shared(("int64", tuple(numbers)), lambda: self.op("Constant", value_ints=list(numbers)))

    def float32(self, number: float) -> ir.Value:
        """A constant, [] float32; one node for all its users."""
        return self.shared(("float32", number), lambda: self.op("Constant", value_float=number))

    def arange(self, count: int) -> ir.Value:
        """0 .. count - 1, [count] int64; a constant as well."""
        return self.shared(("arange", count), lambda: self._tensor(np.arange(count, dtype=np.int64)))

    def _tensor(self, array: np.ndarray) -> ir.Value:
        value = self.op("Constant")
        producer = value.producer()
        assert producer is not None
        producer.attributes.add(ir.AttrTensor("value", ir.tensor(array)))
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", value, to=int(dtype))

    def shared(self, key: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """What ``make`` inserted when ``key`` was first asked for."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def replace(self, result: ir.Value) -> None:
        """Put ``result`` in the place of the node's only output: name, type and shape go over to it."""
        node = self._node
        assert node is not None
        old = node.outputs[0]
        result.shape, result.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        result.name = name


def refuse(node: ir.Node, reason: str) -> BackendError:
    """The error of a node in a form that no graph of a bundle has."""
    return BackendError(
        f"{node.op_type} {node.name!r} with {reason} has no form for TensorRT before 10.15; use TensorRT 10.15 or later"
    )


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Its value, sequences as lists; ``default`` if it is absent."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return list(found.value) if isinstance(found.value, tuple) else found.value


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
