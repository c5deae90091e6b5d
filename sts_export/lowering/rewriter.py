"""Replace nodes of a finished graph: the one way in which graphs are changed for an engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Rewriter:
    """Inserts operators in front of a node, lets a new value take an old one's place, and shares what is the same for all.

    Nodes are taken in the graph's order, so that what was inserted for an earlier one may serve a later one.

    Args:
        named: new nodes and values are named after the node that they stand for, with a running number: names are unique,
            the same in every run, and say in an engine's logs and profiles which layer they belong to.  Otherwise onnx_ir
            numbers them.
    """

    def __init__(self, graph: ir.Graph, *, named: bool) -> None:
        self.graph = graph
        self._named = named
        self._node: ir.Node | None = None
        self._shared: dict[Hashable, ir.Value] = {}
        self._count = 0

    def start(self, node: ir.Node) -> None:
        """Insert in front of ``node`` from now on."""
        self._node = node

    def op(
        self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: int | float | Sequence[int]
    ) -> ir.Value:
        """The output of a new node."""
        return self.ops(operator, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self,
        operator: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: int | float | Sequence[int],
    ) -> Sequence[ir.Value]:
        """All outputs of a new node."""
        assert self._node is not None
        name = f"{self._node.name}/{operator}_{self._count}" if self._named else None
        self._count += 1
        values = [ir.Value(name=name and (f"{name}.{index}" if index else name)) for index in range(outputs)]
        node = ir.Node(domain, operator, inputs, ir.convenience.convert_attributes(attributes), outputs=values, name=name)
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

    def replace(self, result: ir.Value, *, described: bool = True) -> None:
        """Let ``result`` take the place of the only output of the node that was started with, which goes."""
        assert self._node is not None
        self.take_place(self._node.outputs[0], result, described=described)

    def take_place(self, old: ir.Value, new: ir.Value, *, described: bool = True) -> None:
        """The node that gave ``old`` goes; with ``described``, name, type and shape of ``old`` go over to ``new``."""
        producer = old.producer()
        assert producer is not None
        shape, kind, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(producer, safe=True)
        if described:
            new.shape, new.type, new.name = shape, kind, name


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Its value, sequences as lists; ``default`` if it is absent."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return list(found.value) if isinstance(found.value, tuple) else found.value
