"""Key-value caches that ONNX Runtime writes in place, whichever slots of them a call works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sts_export.backends.onnxruntime.memory import Memory, TensorView, whole
from sts_export.graphs.contracts import GraphContract


@dataclass(frozen=True)
class PartCaches:
    """The buffers of one decoder part, [slots, kv_heads, capacity, head_dim], and its bindings for slots next to each other.

    ONNX Runtime writes a cache in place only if one address is bound as input and as output; otherwise it copies all of it.
    So every binding is made once for its slots and binds the same memory on both sides.

    Args:
        buffers: by the names of the graph's inputs.
    """

    contract: GraphContract
    memory: Memory
    buffers: dict[str, Any]
    bindings: dict[tuple[int, int], Any] = field(default_factory=dict)

    @classmethod
    def allocate(cls, contract: GraphContract, memory: Memory, slots: int) -> PartCaches:
        """Zeros, not garbage: masked columns still enter a product, and NaN times zero is NaN.

        Raises:
            BackendError: not enough memory.
        """
        shapes = {before: tuple(int(size) for size in contract.input(before).shape[1:]) for before, _ in contract.caches}
        return cls(contract, memory, {name: memory.zeros((slots, *shape)) for name, shape in shapes.items()})

    def binding(self, session: Any, first: int, count: int) -> Any:
        """A binding of the part's session whose caches are those of the slots ``first`` to ``first + count - 1``."""
        found = self.bindings.get((first, count))
        if found is None:
            found = session.io_binding()
            if not first:  # a prompt's keeps its last outputs, hidden states of all rows, for as long as it lives
                self.bindings[first, count] = found
            for before, after in self.contract.caches:
                view = _slots(self.buffers[before], first, count)
                self.memory.bind(found, before, view)
                self.memory.bind_output(found, after, view)
        return found

    @property
    def nbytes(self) -> int:
        return sum(int(buffer.tensor_size_in_bytes()) for buffer in self.buffers.values())


@dataclass(frozen=True)
class OrtCaches:
    """Key-value buffers of all decoder parts."""

    parts: Mapping[str, PartCaches]
    slots: int

    def bytes_of(self, part: str) -> int:
        return self.parts[part].nbytes

    def holds(self, slot: int) -> bool:
        return True

    @property
    def freed(self) -> bool:
        return False  # ONNX Runtime's values live as long as they are held


def _slots(buffer: Any, first: int, count: int) -> TensorView:
    """Some slots of [slots, ...], which lie next to each other."""
    slots, *shape = whole(buffer).shape
    if not 0 <= first < first + count <= slots:
        raise IndexError(f"there are no slots {first} to {first + count - 1} among {slots}")
    slot_bytes = int(buffer.tensor_size_in_bytes()) // slots
    return TensorView(buffer, (count, *shape), first * slot_bytes)
