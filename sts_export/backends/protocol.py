"""What an inference engine has to offer to the pipeline.

Tensors that stay on the engine's side (features, embeddings, hidden states, kept rows) are opaque to the pipeline; it sees
token indices of stage 1 and logits, and fetches what stage 2 kept only to report it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tensor = Any  # engine-side tensor


@dataclass(frozen=True)
class LowerInputs:
    """One call of LLM-lower for a batch of requests.

    Args:
        input_ids, attention_mask: [batch, sequence] int64; see the graph's contract.
        position_ids: [batch, sequence] or [batch, 3, sequence] int64.
        write_index: [batch] int64; cache row of the first token of this call.
        visual_embeds: for every request the engine-side embeddings of its images, the same number of rows in all; empty
            without visual rows.
        visual_keep: visual rows that stage 2 keeps; of no meaning without visual rows.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    write_index: NDArray[np.int64]
    visual_embeds: Sequence[Sequence[Tensor]] = ()
    visual_keep: int = 1


@dataclass(frozen=True)
class LowerOutputs:
    """Engine-side tensors: hidden_states, kept_rows, kept_position_ids and last_row of the graph's contract."""

    hidden_states: Tensor
    kept_rows: Tensor
    kept_position_ids: Tensor
    last_row: Tensor


class KvCaches(Protocol):
    """Key-value buffers of a batch of requests, both parts; written in place."""

    @property
    def lower_bytes(self) -> int: ...

    @property
    def upper_bytes(self) -> int: ...

    @property
    def freed(self) -> bool:
        """Nothing may use them any more: of a reference cycle the collector frees buffers before it ends the generator."""


class Backend(Protocol):
    """The four graphs of a bundle on one engine.  All methods raise BackendError when the engine fails."""

    def new_caches(self, batch: int) -> KvCaches: ...

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, Tensor]:
        """One image, the vision encoder's inputs by name -> its outputs by name."""

    def select(
        self, features: Mapping[str, Tensor], token_order: NDArray[np.int64], quota: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], Tensor]:
        """One image -> its K kept tokens [K] int64, ascending, and visual_embeds [K, hidden]."""

    def lower(self, caches: Any, inputs: LowerInputs) -> LowerOutputs: ...

    def upper(
        self, caches: Any, lower: LowerOutputs, position_ids: NDArray[np.int64] | None, write_index: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """-> logits [batch, vocab] of each request's last real token; position_ids None: those of the lower part."""

    def decode(
        self, caches: Any, inputs: LowerInputs, position_ids: NDArray[np.int64] | None, write_index: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """:meth:`lower`, then :meth:`upper`, of one token for every request; ``inputs`` has no visual rows."""

    def fetch(self, tensor: Tensor) -> NDArray[Any]:
        """An engine-side tensor on the host."""

    def close(self) -> None:
        """Free what the backend holds; it is of no use afterwards."""
