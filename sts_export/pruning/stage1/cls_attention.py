"""The K tokens that the tower's CLS token attends to most (docs/methods/fastervlm.md).

Source: FasterVLM's public code: softmax of the feature layer, mean over heads, patches alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import CLS_ATTENTION
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs


@dataclass(frozen=True)
class ClsAttention(Stage1):
    """Largest attention of CLS first."""

    name: ClassVar[str] = "cls-attention"
    summary: ClassVar[str] = "what the tower's CLS token attends to (FasterVLM)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({CLS_ATTENTION})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.stage1.rows import largest_candidates
        from sts_export.graphs.stages import Stage1Choice

        return Stage1Choice(largest_candidates(op, inputs.tower[CLS_ATTENTION], inputs.candidates, inputs.quota))


STAGE = ClsAttention
