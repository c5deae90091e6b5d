"""What an inference engine has to offer to the pipeline.

Tensors that stay on the engine's side (features, embeddings, hidden states) are opaque to the pipeline; it sees only
small integers and logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tensor = Any  # engine-side tensor


@dataclass(frozen=True)
class LowerInputs:
    """One call of LLM-lower.

    input_ids, position_ids: [1, sequence] int64, ids with VISUAL_ROW for visual rows; visual_embeds: engine-side
    [1, visual, hidden], or None without visual rows; write_index: cache row of the first token.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    write_index: int
    visual_embeds: Tensor | None = None


@dataclass(frozen=True)
class LowerOutputs:
    """hidden_states and last_row stay with the engine; kept_rows, kept_position_ids: [1, survivors] int64."""

    hidden_states: Tensor
    last_row: Tensor
    kept_rows: NDArray[np.int64]
    kept_position_ids: NDArray[np.int64]


class KvCaches(Protocol):
    """Key-value buffers of one request, both parts; written in place."""

    @property
    def lower_bytes(self) -> int: ...

    @property
    def upper_bytes(self) -> int: ...


class Backend(Protocol):
    """The four graphs of a bundle on one engine.  All methods raise BackendError when the engine fails."""

    def new_caches(self) -> KvCaches: ...

    def encode(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """pixel_values [crops, 3, H, W] -> visual features (and whatever else the selector takes)."""

    def select(self, features: Tensor) -> tuple[NDArray[np.int64], Tensor]:
        """-> kept_index [crops, K] int64 and visual_embeds [crops, K, hidden]."""

    def lower(self, caches: Any, inputs: LowerInputs) -> LowerOutputs: ...

    def upper(self, caches: Any, lower: LowerOutputs, position_ids: NDArray[np.int64], write_index: int) -> NDArray[np.float32]:
        """-> logits [vocab] of the last real token."""
