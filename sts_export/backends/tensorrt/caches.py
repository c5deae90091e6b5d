"""The key-value caches of all decoder parts, and the decode steps that work on them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from sts_export.backends.cuda_runtime import DeviceMemory
from sts_export.backends.tensorrt.decode import DecodeStep, StepKey
from sts_export.backends.tensorrt.part_caches import PartCaches


class TensorRtCaches:
    """Caches of all decoder parts and the decode steps that work on them; freed when dropped.

    Args:
        parts: by name, in the order in which they run; of as many slots each.
    """

    def __init__(self, parts: Mapping[str, PartCaches], slots: int) -> None:
        self.parts, self.slots = dict(parts), slots
        self.steps: dict[StepKey, DecodeStep] = {}
        self.close = weakref.finalize(self, _close, self.steps, [part.memories for part in parts.values()])

    def bytes_of(self, part: str) -> int:
        """slots * 2 * layers * kv_heads * capacity * head_dim * itemsize; twice that without writing in place."""
        return self.parts[part].nbytes

    def holds(self, slot: int) -> bool:
        return all(part.holds(slot) for part in self.parts.values())

    @property
    def freed(self) -> bool:
        return not self.close.alive


def _close(steps: dict[StepKey, DecodeStep], memories: list[list[DeviceMemory]]) -> None:
    """Graphs go before the memory that they work on."""
    for step in steps.values():
        step.close()
    steps.clear()
    for part in memories:
        for memory in part:
            memory.free()
