"""HiPrune: anchors of a middle layer, their neighbours, and registers of the feature layer (docs/methods/hiprune.md).

    anchors     the floor(K alpha / 5 + 0.5 + 1e-6) tokens that receive most attention in a middle layer
    buffers     their left, right, upper and lower neighbours inside the crop's grid
    kept        anchors, then buffers, then others, each by attention received in the feature layer, until K are chosen

Source: HiPrune's public code, whose neighbours wrap at the ends of rows; here they do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.errors import BudgetError
from sts_export.graphs.needs import GRID, MIDDLE_RECEIVED_ATTENTION, RECEIVED_ATTENTION
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

DEFAULT_ALPHA = 0.1


@dataclass(frozen=True)
class HiPrune(Stage1):
    """Objects, what lies around them, and what the tower's last layers gather in.

    Args:
        alpha: five times the share of K that are anchors, above 0 and at most 1.
    """

    name: ClassVar[str] = "hiprune"
    summary: ClassVar[str] = "attention received in a middle and a late layer of the tower (HiPrune)"

    alpha: float = DEFAULT_ALPHA

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise BudgetError(f"alpha must be above 0 and at most 1, not {self.alpha}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({RECEIVED_ATTENTION, MIDDLE_RECEIVED_ATTENTION, GRID})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        """Each class is ordered by itself: a bonus per class added to float32 scores would round them."""
        import numpy as np
        import onnx_ir as ir

        from sts_export.graphs.stage1.rows import largest_candidates, mark, row_numbers, true_count
        from sts_export.graphs.stages import Stage1Choice

        candidates, quota = inputs.candidates, inputs.quota
        # By a table: float32 would round where float64 does not.
        table = np.array([_anchors(keep, self.alpha) for keep in range(inputs.max_rows + 1)], np.int64)
        keep = true_count(op, quota)
        anchor_count = op.Gather(op.Constant(value=ir.tensor(table)), keep)  # [crops, 1]

        anchors = largest_candidates(op, inputs.tower[MIDDLE_RECEIVED_ATTENTION], candidates, quota)
        step = row_numbers(op, quota, 1)  # [steps]
        is_anchor = mark(op, anchors, op.Less(step, anchor_count), candidates)
        anchor = op.Cast(is_anchor, to=ir.DataType.FLOAT)
        beside = op.Greater(_beside(op, anchor, inputs.columns), op.Constant(value_float=0.5))
        no_anchor = op.And(candidates, op.Not(is_anchor))
        is_buffer = op.And(no_anchor, beside)

        late = inputs.tower[RECEIVED_ATTENTION]
        buffers = largest_candidates(op, late, is_buffer, quota)
        others = largest_candidates(op, late, op.And(no_anchor, op.Not(beside)), quota)
        buffer_count = true_count(op, is_buffer)
        behind_anchors = op.Sub(step, anchor_count)
        behind_buffers = op.Sub(behind_anchors, buffer_count)
        zero = op.Constant(value_int=0)
        chosen = op.Where(
            op.Less(behind_anchors, zero),
            anchors,
            op.Where(
                op.Less(behind_buffers, zero),
                op.GatherElements(buffers, op.Max(behind_anchors, zero), axis=1),
                op.GatherElements(others, op.Max(behind_buffers, zero), axis=1),
            ),
        )
        return Stage1Choice(chosen)


STAGE = HiPrune


def _anchors(keep: int, alpha: float) -> int:
    """Anchors among K tokens; none where K is small."""
    return math.floor(keep * alpha / 5 + 0.5 + 1e-6)


def _beside(op: Op, anchor: ir.Value, columns: ir.Value) -> ir.Value:
    """1 for the neighbours of anchors, else 0: [crops, rows] float32, [1] int64 -> [crops, rows]."""
    import onnx_ir as ir

    from sts_export.graphs.layers import concat_dims, dims
    from sts_export.graphs.stage1.rows import row_numbers

    rows, last = row_numbers(op, anchor, 1), op.Sub(dims(op, anchor, 1, 2), op.Constant(value_ints=[1]))
    zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    column = op.Mod(rows, columns)
    inside = [
        op.Greater(column, zero),
        op.Less(column, op.Sub(columns, one)),
        op.GreaterOrEqual(rows, columns),
        op.LessOrEqual(op.Add(rows, columns), last),
    ]
    places = [op.Sub(rows, one), op.Add(rows, one), op.Sub(rows, columns), op.Add(rows, columns)]
    # The four in a row: one Gather reads them.
    place = op.Min(op.Max(op.Concat(*places, axis=0), zero), last)
    found = op.Mul(op.Gather(anchor, place, axis=1), op.Cast(op.Concat(*inside, axis=0), to=ir.DataType.FLOAT))
    apart = op.Reshape(found, concat_dims(op, dims(op, anchor, 0, 1), 4, dims(op, anchor, 1, 2)))
    return op.ReduceMax(apart, one, keepdims=0)
