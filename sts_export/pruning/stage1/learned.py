"""Stage 1 of LearnPruner: tokens that a trained selector would keep, and a few that are unlike them.

    p = softmax(linear_2(gelu(linear_1(x))))[1] of the tower's features x, in float32
    P = max(1, 9 K // 10) largest p; then, one by one, the token whose largest cosine to the chosen ones is smallest

The selector's weights come from a file of their own:

    selector.linear_1.weight [width // 2, width]    selector.linear_1.bias [width // 2]
    selector.linear_2.weight [2, width // 2]        selector.linear_2.bias [2]; output 1 is "keep"

Source: arXiv 2604.23950; the activation is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

_BY_PROBABILITY = 9, 10  # of K


@dataclass(frozen=True)
class Learned(Stage1):
    """Tokens that a trained selector keeps."""

    name: ClassVar[str] = "learned"
    summary: ClassVar[str] = "tokens that a trained selector keeps, from --selector-weights (LearnPruner)"

    def own_weights(self, width: int) -> Mapping[str, tuple[int, ...]]:
        inner = width // 2
        return {
            "selector.linear_1.weight": (inner, width),
            "selector.linear_1.bias": (inner,),
            "selector.linear_2.weight": (2, inner),
            "selector.linear_2.bias": (2,),
        }

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        import onnx_ir as ir

        from sts_export.graphs.layers import dims
        from sts_export.graphs.stage1.keep_probability import KeepProbability
        from sts_export.graphs.stage1.rows import largest_candidates, mark, row_numbers, true_count, unit_rows
        from sts_export.graphs.stages import Stage1Choice

        features, candidates, quota = inputs.features, inputs.candidates, inputs.quota
        steps, one = dims(op, quota, 1, 2), op.Constant(value_int=1)
        probability = KeepProbability(int(features.shape[2]), name="selector")(op, op.Cast(features, to=ir.DataType.FLOAT))
        order = largest_candidates(op, probability, candidates, quota)
        first_count, step = _by_probability(op, true_count(op, quota)), row_numbers(op, quota, 1)
        is_first = op.Less(step, first_count)  # [crops, steps]

        first = op.And(mark(op, order, is_first, candidates), candidates)
        most_others = op.Max(op.Sub(steps, _by_probability(op, steps)), one)  # [1], of any crop
        operands = unit_rows(op, features), candidates, first, most_others
        others = op.call(unlike_select(), *operands, _outputs=["others"])
        place = op.Min(op.Max(op.Sub(step, first_count), op.Constant(value_int=0)), op.Sub(most_others, one))
        return Stage1Choice(op.Where(is_first, order, op.GatherElements(others, place, axis=1)))

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # Cosines of all pairs: with those taken marked, and those to the first ones alone.
        return 3 * max_crops * max_rows**2 * 4


STAGE = Learned


def _by_probability(op: Op, keep: ir.Value) -> ir.Value:
    """P of K, both int64."""
    share, whole = (op.Constant(value_int=number) for number in _BY_PROBABILITY)
    return op.Max(op.Div(op.Mul(keep, share), whole), op.Constant(value_int=1))


def _unlike_body(op: Op, unit: ir.Value, candidates: ir.Value, first: ir.Value, count: ir.Value) -> list[ir.Value]:
    from sts_export.graphs.stage1.greedy import TAKEN, choose_least, mark_diagonal
    from sts_export.graphs.stage1.rows import row_numbers

    taken = op.Constant(value_float=TAKEN)
    cosines = op.MatMul(unit, op.Transpose(unit, perm=[0, 2, 1]))
    to_first = op.Where(op.Unsqueeze(first, op.Constant(value_ints=[1])), cosines, op.Neg(taken))
    largest = op.ReduceMax(to_first, op.Constant(value_ints=[2]), keepdims=0)  # [crops, rows]
    largest = op.Where(op.And(candidates, op.Not(first)), largest, taken)
    # A token is like itself without bound, which marks it as taken.
    cosines = mark_diagonal(op, cosines, row_numbers(op, unit, 1), unit)

    def nearer(op: Op, largest: ir.Value, last: ir.Value) -> ir.Value:
        return op.Max(largest, op.GatherND(cosines, last, batch_dims=1))

    least = op.ArgMin(largest, axis=1, keepdims=1)
    return [choose_least(op, largest, least, count, nearer, name="unlike_step")]


def unlike_select() -> ir.Function:
    """``sts::UnlikeSelect(unit, candidates, first, count) -> chosen``: those least like what is chosen already, one by one.

    Inputs:
        unit: [crops, rows, width] float32, unit vectors
        candidates, first: [crops, rows] bool; what may be chosen, and what is chosen already
        count: [1] int64, at least 1
    Output:
        chosen: [crops, count] int64, in the order of choice; ties go to the lowest row.  Once a crop has no candidate left
            its further choices mean nothing
    """
    import onnx_ir as ir

    from sts_export.graphs.functions import function, tensor

    inputs = [
        tensor("unit", ir.DataType.FLOAT, "crops", "rows", "width"),
        tensor("candidates", ir.DataType.BOOL, "crops", "rows"),
        tensor("first", ir.DataType.BOOL, "crops", "rows"),
        tensor("count", ir.DataType.INT64, 1),
    ]
    return function("UnlikeSelect", _unlike_body, inputs, {})
