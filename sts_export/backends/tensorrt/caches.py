"""Key-value caches in device memory, each graph's at its own capacity."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt.memory import DeviceTensor, aligned, nbytes_of
from sts_export.graphs.contracts import GraphContract

if TYPE_CHECKING:
    from sts_export.backends.tensorrt.decode import DecodeStep

# Which buffers the lower and the upper part read, and whether the upper part's positions are given.
StepKey = tuple[int, int, bool]


class PartCaches:
    """The caches of one graph for a batch, zero at first.

    An engine that aliases its caches writes them in place: one buffer each, bound as input and as output.  Another one reads
    all of one buffer and writes all of a second, and they change places after every call.

    Args:
        contract: of the graph.
        batch: requests.
        aliased: the engine writes in place.

    Raises:
        BackendError: out of memory.
    """

    def __init__(self, cuda: Cuda, contract: GraphContract, batch: int, *, aliased: bool) -> None:
        specs = [(before, after, contract.input(before)) for before, after in contract.caches]
        shapes = [(batch, *(int(size) for size in spec.shape[1:])) for _, _, spec in specs]
        sizes = [nbytes_of(shape, spec.dtype) for shape, (_, _, spec) in zip(shapes, specs, strict=True)]
        self.copies = 1 if aliased else 2
        self.nbytes = self.copies * sum(sizes)
        self.capacity = shapes[0][2]
        self.current = 0  # the buffers that hold the caches
        total = self.copies * sum(aligned(size) for size in sizes)
        self.memory = cuda.allocate(total, f"the KV caches of {batch} request(s) in {contract.name}")
        # Zeros, not garbage: masked columns still enter a product, and NaN times zero is NaN.
        cuda.clear(self.memory.address, total)
        self._tensors: list[dict[str, DeviceTensor]] = []
        address = self.memory.address
        for _ in range(self.copies):
            tensors = {}
            for (before, _, spec), shape, size in zip(specs, shapes, sizes, strict=True):
                tensors[before] = DeviceTensor(address, shape, spec.dtype, self.memory)
                address += aligned(size)
            self._tensors.append(tensors)
        self._pairs = contract.caches

    def bindings(self) -> dict[str, DeviceTensor]:
        """Inputs and outputs of the next call."""
        source, target = self._tensors[self.current], self._tensors[(self.current + 1) % self.copies]
        return {**source, **{after: target[before] for before, after in self._pairs}}

    def written(self) -> None:
        """A call was made: what it wrote are the caches now."""
        self.current = (self.current + 1) % self.copies


class TensorRtCaches:
    """Caches of a batch and the decode steps that work on them; freed when dropped.

    ``lower_bytes`` and ``upper_bytes`` are the sizes of all buffers: batch * 2 * layers * kv_heads * capacity * head_dim *
    itemsize, and twice that where the engine does not write in place.
    """

    def __init__(self, lower: PartCaches, upper: PartCaches, batch: int) -> None:
        self.lower, self.upper, self.batch = lower, upper, batch
        self.steps: dict[StepKey, DecodeStep] = {}
        self.close = weakref.finalize(self, _close, self.steps, lower.memory.free, upper.memory.free)

    @property
    def lower_bytes(self) -> int:
        return self.lower.nbytes

    @property
    def upper_bytes(self) -> int:
        return self.upper.nbytes

    @property
    def freed(self) -> bool:
        return not self.close.alive


def _close(steps: dict[StepKey, DecodeStep], *free: Any) -> None:
    """Graphs go before the memory that they work on."""
    for step in steps.values():
        step.close()
    steps.clear()
    for release in free:
        release()
