"""Dissimilarity to pivots, stage 2 of DART: duplicates go, not what attention leaves out.

    importance of a row = L1 norm of its key, rotated, all KV heads together
    pivots = the 4 visual rows and the 4 text rows behind the last picture that are most important
    each pivot takes the visual rows of lowest cosine to it among those that are left

Visual pivots are kept.  Each of p pivots, in the order of rows, takes K' // p rows; the last ones less, so that exactly K' are
kept, and the first ones more where K' // p each are too few.  Source: arXiv 2502.11494 and its public code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import FINAL_HIDDEN, OWN_QUERY_KEY, TEXT_ROWS
from sts_export.pruning.stage import Stage2

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage2Inputs
    from sts_export.graphs.survivors import PromptRows

# Pivots of either kind.
_PIVOTS = 4
# Above any cosine: a row that cannot be taken any more.
_TAKEN = 1e30
_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class Dart(Stage2):
    """Visual rows that are unlike the pivots, and the visual pivots."""

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "rows that are least like a few important ones (DART)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({OWN_QUERY_KEY, FINAL_HIDDEN, TEXT_ROWS})

    def build(self, op: Op, inputs: Stage2Inputs) -> tuple[ir.Value, ir.Value]:
        import numpy as np
        import onnx_ir as ir

        from sts_export.graphs.layers import dims
        from sts_export.graphs.survivors import keep_marked, prompt_rows, rows_behind_pictures

        rows = prompt_rows(op, inputs.attention_mask)
        behind = rows_behind_pictures(op, inputs.text_rows, inputs.attention_mask, rows)
        key = op.Cast(inputs.key, to=ir.DataType.FLOAT)
        importance = op.ReduceSum(op.Abs(key), op.Constant(value_ints=[1, 3]), keepdims=0)  # [batch, rows]
        visual = _most_important(op, importance, inputs.visual_mask, rows)
        pivots = op.Concat(visual, _most_important(op, importance, behind, rows), axis=1)
        pivots = _ascending(op, pivots)
        keep = dims(op, inputs.stage2_slots, 0, 1)
        shares = _shares(op, op.Less(visual, rows.count), op.Less(pivots, rows.count), keep)
        cosines = _cosines(op, inputs.final_hidden, op.Min(pivots, op.Sub(rows.count, rows.axis)))

        # Where even the visual pivots are too many, the most important of them.
        first = op.Less(op.Constant(value=ir.tensor(np.arange(_PIVOTS, dtype=np.int64))), keep)
        first = op.Unsqueeze(op.Where(first, visual, rows.count), op.Constant(value_ints=[2]))
        pivot = op.ReduceMax(op.Cast(op.Equal(first, rows.index), to=ir.DataType.FLOAT), rows.axis, keepdims=0)
        others = op.Cast(op.Not(inputs.visual_mask), to=ir.DataType.FLOAT)
        taken = op.Mul(op.Max(pivot, others), op.Constant(value_float=_TAKEN))  # [batch, rows]
        place = op.Range(op.Constant(value_int=0), op.Squeeze(keep), op.Constant(value_int=1))
        for number in range(2 * _PIVOTS):
            which = op.Constant(value_int=number)
            left = op.Add(op.Gather(cosines, which, axis=1), taken)
            _, unlike = op.TopK(left, keep, axis=1, largest=0, sorted=1, _outputs=[f"cosines_{number}", f"unlike_{number}"])
            its = op.Less(place, op.Gather(shares, op.Constant(value_ints=[number]), axis=1))  # [batch, visual_keep]
            its = op.Where(its, op.Constant(value_float=_TAKEN), op.Constant(value_float=0.0))
            taken = op.ScatterElements(taken, unlike, op.Max(op.GatherElements(taken, unlike, axis=1), its), axis=1)
        marks = op.Cast(op.Greater(taken, op.Constant(value_float=0.0)), to=ir.DataType.FLOAT)
        return keep_marked(op, marks, rows, inputs.visual_embeds, inputs.stage2_slots)


STAGE = Dart


def _most_important(op: Op, importance: ir.Value, among: ir.Value, rows: PromptRows) -> ir.Value:
    """[batch, pivots] int64, most important first; where there are fewer, the number of all rows stands in."""
    from sts_export.graphs.layers import concat_dims, dims

    never = op.Constant(value_float=-1.0)
    # There may be fewer rows than pivots.
    more = op.Expand(never, concat_dims(op, dims(op, importance, 0, 1), _PIVOTS))
    candidates = op.Concat(op.Where(among, importance, never), more, axis=1)
    importances, found = op.TopK(candidates, op.Constant(value_ints=[_PIVOTS]), axis=1, largest=1, sorted=1, _outputs=2)
    return op.Where(op.Greater(importances, never), found, rows.count)


def _ascending(op: Op, pivots: ir.Value) -> ir.Value:
    """[batch, all pivots] int64, sorted."""
    import onnx_ir as ir

    numbers = op.Cast(pivots, to=ir.DataType.FLOAT)
    ordered, _ = op.TopK(numbers, op.Constant(value_ints=[2 * _PIVOTS]), axis=1, largest=0, sorted=1, _outputs=2)
    return op.Cast(ordered, to=ir.DataType.INT64)


def _shares(op: Op, visual: ir.Value, pivots: ir.Value, keep: ir.Value) -> ir.Value:
    """[batch, all pivots] int64, how many rows each pivot takes: with the visual pivots K' in all.

    Args:
        visual: [batch, pivots] bool, which visual pivots there are.
        pivots: [batch, all pivots] bool, which pivots there are, which are the first ones.
        keep: [1] int64, K'.
    """
    import numpy as np
    import onnx_ir as ir

    axis1, zero = op.Constant(value_ints=[1]), op.Constant(value_int=0)
    kept, count = (op.ReduceSum(op.Cast(there, to=ir.DataType.INT64), axis1, keepdims=1) for there in (visual, pivots))
    share = op.Div(keep, op.Max(count, axis1))  # a text prompt may have no pivot
    # Fewer than there are pivots, since K' // p of each leave a rest below p.
    missing = op.Sub(keep, op.Add(kept, op.Mul(count, share)))
    number = op.Constant(value=ir.tensor(np.arange(2 * _PIVOTS, dtype=np.int64)))
    share = op.Add(share, op.Cast(op.Less(number, missing), to=ir.DataType.INT64))
    share = op.Where(pivots, share, zero)
    # Sums over the pivots before; CumSum has no form of whole numbers in older TensorRT.
    earlier = op.Constant(value=ir.tensor(np.tri(2 * _PIVOTS, k=-1, dtype=np.bool_)))
    before = op.ReduceSum(op.Where(earlier, op.Unsqueeze(share, axis1), zero), op.Constant(value_ints=[2]), keepdims=0)
    before = op.Add(kept, before)
    return op.Sub(op.Min(op.Add(before, share), keep), op.Min(before, keep))


def _cosines(op: Op, hidden: ir.Value, pivots: ir.Value) -> ir.Value:
    """[batch, all pivots, rows] float32, of every row to every pivot.

    Args:
        hidden: [batch, rows, hidden].
        pivots: [batch, all pivots] int64.
    """
    import onnx_ir as ir

    axis2, least = op.Constant(value_ints=[2]), op.Constant(value_float=_LEAST_NORM)
    x = op.Cast(hidden, to=ir.DataType.FLOAT)
    norms = op.Max(op.ReduceL2(x, axis2, keepdims=1), least)  # [batch, rows, 1]
    places = op.Unsqueeze(pivots, axis2)
    units = op.Div(op.GatherND(x, places, batch_dims=1), op.GatherND(norms, places, batch_dims=1))
    products = op.MatMul(x, op.Transpose(units, perm=[0, 2, 1]))  # [batch, rows, all pivots]
    return op.Transpose(op.Div(products, norms), perm=[0, 2, 1])
