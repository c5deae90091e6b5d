"""What an inference engine has to offer to generation.

Inputs and outputs of the graphs travel as mappings by the names of their contracts.  An input is an array on the host or a
tensor of the engine; outputs stay with the engine, opaque, until they are fetched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tensor = Any  # engine-side tensor
Feeds = Mapping[str, NDArray[Any] | Tensor]


class KvCaches(Protocol):
    """Key-value buffers of all decoder parts, written in place.

    Each is [slots, kv_heads, capacity, head_dim]; a slot holds one request, and is contiguous.
    """

    @property
    def slots(self) -> int: ...

    def bytes_of(self, part: str) -> int:
        """Memory of one part's buffers, all slots together."""

    def holds(self, slot: int) -> bool:
        """Whether the rows that a slot was given are still there; an engine that does not write in place loses those of
        slots that a step leaves out."""

    @property
    def freed(self) -> bool:
        """Nothing may use them any more: of a reference cycle the collector frees buffers before it ends the generator."""


class Backend(Protocol):
    """The graphs of a bundle on one engine.  All methods raise BackendError when the engine fails."""

    def new_caches(self, slots: int) -> KvCaches: ...

    def run(
        self, graph: str, inputs: Feeds, *, caches: Any = None, slot: int | None = None, fetch: Collection[str] = ()
    ) -> Mapping[str, Any]:
        """One graph once.

        Args:
            graph: of the bundle.
            inputs: by name, but for the caches.  Float32 arrays are taken for float inputs of any width.  A float input with
                the dimension ``visual`` may be left out: it is then one row of zeros, of no meaning.
            caches: of a decoder part.
            slot: the one that this batch of one works on; the others are left alone.  A decoder part's ``write_index`` may be
                above 0 with any number of rows: what the slot holds before it is read.
            fetch: outputs wanted on the host.

        Returns:
            Outputs by name, but for the caches: tensors of the engine, and arrays where they are fetched.
        """

    def decode(self, caches: Any, inputs: Mapping[str, Feeds]) -> NDArray[np.float32]:
        """One token of each of the first slots, through all parts -> logits [slots, vocab].

        Args:
            inputs: part -> arrays on the host; as many slots as their batch are run.  What a part takes and is not among
                them comes from the part before (``graphs.contracts.PASSED_ON``).
        """

    def step_slots(self, needed: int, slots: int) -> int:
        """How many of the first slots a step runs best that needs so many of them; at most ``slots``.

        An engine that keeps something for every number of slots wants few of them; one that rounds otherwise where there is
        only one wants two.
        """

    def rows(self, tensor: Tensor, count: int) -> Tensor:
        """The first ``count`` rows of a tensor [rows, ...], without a copy."""

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors [rows, width] one after another: [1, all rows, width]; without a copy where there is one."""

    def fetch(self, tensor: Tensor) -> NDArray[Any]:
        """An engine-side tensor on the host."""

    def close(self) -> None:
        """Free what the backend holds; it is of no use afterwards."""
