"""The K tokens that receive most attention in the vision tower (docs/methods/star.md).

    A = softmax(q k^T / sqrt(d)) of the feature layer, mean over heads      r_j = mean over patches i of the crop of A_ij

Source: STAR (arXiv 2505.12359).  Its printed row mean is constant and cannot be meant, so this is the column mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import RECEIVED_ATTENTION
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs


@dataclass(frozen=True)
class ReceivedAttention(Stage1):
    """Largest received attention first."""

    name: ClassVar[str] = "received-attention"
    summary: ClassVar[str] = "what receives most attention in the vision tower (STAR)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({RECEIVED_ATTENTION})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.stage1.rows import largest_candidates
        from sts_export.graphs.stages import Stage1Choice

        return Stage1Choice(largest_candidates(op, inputs.tower[RECEIVED_ATTENTION], inputs.candidates, inputs.quota))


STAGE = ReceivedAttention
