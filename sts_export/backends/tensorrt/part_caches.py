"""Key-value caches in device memory: a slot for each request, each decoder part's at its own capacity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.cuda_runtime import ALIGNMENT, Cuda, DeviceMemory
from sts_export.backends.tensorrt.memory import DeviceTensor, aligned, nbytes_of
from sts_export.errors import BackendError
from sts_export.graphs.contracts import GraphContract

Bindings = dict[str, DeviceTensor]


class PartCaches:
    """The caches [slots, kv_heads, capacity, head_dim] of one decoder part, zero at first.

    An engine that aliases its caches writes them in place: one buffer each, bound as input and as output.

    Another one reads all of one buffer and writes all of a second.  ``current`` are the buffers that hold the caches:

    - A step of the first n slots reads them in the current buffers and writes them in the others, and then the buffers change
      places, for all slots.  So a slot beyond n loses its rows: a step must cover every slot in use.
    - A call on one slot from its first row on reads nothing of it.  It takes the slot of the other buffers as its input, whose
      content means nothing but is finite, and writes the slot of the current ones.  So no other slot moves.

    Slots that TensorRT would refuse the address of (their bytes are no multiple of 256), and a slot that is continued by an
    engine that does not write in place, go through caches of one slot and are copied.

    Args:
        contract: of the graph.
        slots: requests.
        aliased: the engine writes in place.

    Raises:
        BackendError: out of memory.
    """

    def __init__(self, cuda: Cuda, contract: GraphContract, slots: int, *, aliased: bool) -> None:
        specs = [(before, contract.input(before)) for before, _ in contract.caches]
        shapes = [(slots, *(int(size) for size in spec.shape[1:])) for _, spec in specs]
        sizes = [nbytes_of(shape, spec.dtype) for shape, (_, spec) in zip(shapes, specs, strict=True)]
        self._cuda, self._contract, self._aliased = cuda, contract, aliased
        self.slots, self.copies = slots, 1 if aliased else 2
        self.nbytes = self.copies * sum(sizes)
        self.capacity = shapes[0][2]
        self.current = 0  # the buffers that hold the caches
        total = self.copies * sum(aligned(size) for size in sizes)
        self._memory = cuda.allocate(total, f"the KV caches of {slots} request(s) in {contract.name}")
        self.memories: list[DeviceMemory] = [self._memory]
        # Zeros, not garbage: masked columns still enter a product, and NaN times zero is NaN.
        cuda.clear(self._memory.address, total)
        self._tensors: list[Bindings] = []
        address = self._memory.address
        for _ in range(self.copies):
            tensors = {}
            for (before, spec), shape, size in zip(specs, shapes, sizes, strict=True):
                tensors[before] = DeviceTensor(address, shape, spec.dtype, self._memory)
                address += aligned(size)
            self._tensors.append(tensors)
        self._slots_are_aligned = all(size // slots % ALIGNMENT == 0 for size in sizes)
        self._lost = np.zeros(slots, np.bool_)  # slots whose rows a step has left behind
        self._one_slot: PartCaches | None = None

    # A step of the first slots

    def check_step(self, write_index: NDArray[np.int64]) -> None:
        """Refuse a step that would write beyond the end, or go on with rows that are lost.

        Args:
            write_index: [n] int64, of the first n slots.

        Raises:
            BackendError: it would.
        """
        self._check_room(write_index, 1)
        self._check_lost(np.arange(len(write_index)), write_index)

    def step_bindings(self, slots: int) -> Bindings:
        """Inputs and outputs of a step of the first slots."""
        source = {name: tensor.first(slots) for name, tensor in self._tensors[self.current].items()}
        target = {name: tensor.first(slots) for name, tensor in self._other.items()}
        return source | {after: target[before] for before, after in self._contract.caches}

    def stepped(self, write_index: NDArray[np.int64]) -> None:
        """A step was run: what it wrote are the caches now."""
        self.current = (self.current + 1) % self.copies
        self._lost[: len(write_index)] = False
        self._lost[len(write_index) :] = self.copies == 2

    def holds(self, slot: int) -> bool:
        """Whether no step has left the slot's rows behind."""
        return not self._lost[slot]

    # A call on one slot

    def check_slot(self, slot: int, write_index: NDArray[np.int64], rows: int) -> None:
        """Refuse what would write beyond the end or into no slot.

        Raises:
            BackendError: it would.
        """
        if not 0 <= slot < self.slots:
            raise BackendError(f"slot {slot} of caches with {self.slots} slots; make caches with more slots")
        self._check_room(write_index, rows)
        self._check_lost(np.array([slot]), write_index)

    def slot_bindings(self, slot: int, write_index: int) -> Bindings:
        """Inputs and outputs of a call on one slot; :meth:`slot_written` has to follow it."""
        if not self._is_direct(slot, write_index):
            if self._one_slot is None:
                self._one_slot = PartCaches(self._cuda, self._contract, 1, aliased=self._aliased)
                self.memories.append(self._one_slot._memory)
            one = self._one_slot._tensors[self._one_slot.current]
            self._copy(self._slot_of(self._tensors[self.current], slot), one)
            return self._one_slot.step_bindings(1)
        source, target = self._slot_of(self._other, slot), self._slot_of(self._tensors[self.current], slot)
        return source | {after: target[before] for before, after in self._contract.caches}

    def slot_written(self, slot: int, write_index: int) -> None:
        """The call that :meth:`slot_bindings` were for was made."""
        self._lost[slot] = False
        if not self._is_direct(slot, write_index):
            assert self._one_slot is not None
            self._one_slot.stepped(np.zeros(1, np.int64))
            one = self._one_slot._tensors[self._one_slot.current]
            self._copy(one, self._slot_of(self._tensors[self.current], slot))

    def _is_direct(self, slot: int, write_index: int) -> bool:
        return (slot == 0 or self._slots_are_aligned) and (self._aliased or write_index == 0)

    def _slot_of(self, tensors: Bindings, slot: int) -> Bindings:
        return {name: tensor.row(slot) for name, tensor in tensors.items()}

    def _copy(self, source: Mapping[str, DeviceTensor], target: Mapping[str, DeviceTensor]) -> None:
        for name, tensor in source.items():
            self._cuda.on_device(target[name].address, tensor.address, tensor.nbytes)

    @property
    def _other(self) -> Bindings:
        """The buffers that a step writes."""
        return self._tensors[(self.current + 1) % self.copies]

    def _check_lost(self, slots: NDArray[np.int64], write_index: NDArray[np.int64]) -> None:
        gone = slots[self._lost[slots] & (write_index > 0)]
        if len(gone):
            raise BackendError(
                f"slots {gone.tolist()} of {self._contract.name} have lost their cache rows to a step of fewer slots; "
                "a step has to cover all slots in use"
            )

    def _check_room(self, write_index: NDArray[np.int64], rows: int) -> None:
        """TensorRT ignores what is written beyond a cache's end."""
        slots = len(write_index)
        if slots > self.slots or int(write_index.min()) < 0 or int(write_index.max()) + rows > self.capacity:
            raise BackendError(
                f"{slots} x {rows} rows from {write_index.tolist()} do not fit into caches of {self.slots} x {self.capacity} "
                "rows; export the bundle with larger capacities"
            )
