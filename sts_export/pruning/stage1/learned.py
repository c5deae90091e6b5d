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

# Above every cosine, and finite.
_TAKEN = 1e30
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
        from sts_export.graphs.stage1.crop_rows import NEVER, largest_first, mark, numbers, true_count, unit_vectors
        from sts_export.graphs.stage1.keep_probability import KeepProbability
        from sts_export.graphs.stages import Stage1Choice

        features, candidates, quota = inputs.features, inputs.candidates, inputs.quota
        steps, one = dims(op, quota, 1, 2), op.Constant(value_int=1)
        probability = KeepProbability(int(features.shape[2]), name="selector")(op, op.Cast(features, to=ir.DataType.FLOAT))
        order = largest_first(op, op.Where(candidates, probability, op.Constant(value_float=NEVER)), steps)
        first_count, step = _by_probability(op, true_count(op, quota)), numbers(op, steps)
        is_first = op.Less(step, first_count)  # [crops, steps]

        first = op.And(mark(op, order, is_first, candidates), candidates)
        most_others = op.Max(op.Sub(steps, _by_probability(op, steps)), one)  # [1], of any crop
        operands = unit_vectors(op, features), candidates, first, most_others
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
    import numpy as np
    import onnx_ir as ir

    from sts_export.graphs.functions import tensor
    from sts_export.graphs.layers import concat_dims, dims
    from sts_export.graphs.stage1.crop_rows import numbers

    axis1, axis2 = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
    taken = op.Constant(value_float=_TAKEN)
    cosines = op.MatMul(unit, op.Transpose(unit, perm=[0, 2, 1]))
    to_first = op.Where(op.Unsqueeze(first, axis1), cosines, op.Neg(taken))
    largest = op.ReduceMax(to_first, axis2, keepdims=0)  # [crops, rows]
    largest = op.Where(op.And(candidates, op.Not(first)), largest, taken)
    # A token is like itself without bound, which marks it as taken.
    diagonal = concat_dims(op, dims(op, unit, 0, 2), 1)
    itself = op.Expand(op.Unsqueeze(numbers(op, dims(op, unit, 1, 2)), axis1), diagonal)
    cosines = op.ScatterElements(cosines, itself, op.Expand(taken, diagonal), axis=2)

    def step(op: Op, _step: ir.Value, _going: ir.Value, largest: ir.Value) -> list[ir.Value]:
        chosen = op.ArgMin(largest, axis=1, keepdims=1)
        next_largest = op.Max(largest, op.GatherND(cosines, chosen, batch_dims=1))
        # A constant: without a condition input, TensorRT's parser does not know the body's own one.
        return [op.Constant(value=ir.tensor(np.array(True))), next_largest, chosen]

    body = op.builder.subgraph(
        step,
        [
            tensor("step", ir.DataType.INT64),
            tensor("going", ir.DataType.BOOL),
            tensor("largest_before", ir.DataType.FLOAT, "crops", "rows"),
        ],
        [
            tensor("still_going", ir.DataType.BOOL),
            tensor("next_largest", ir.DataType.FLOAT, "crops", "rows"),
            tensor("chosen", ir.DataType.INT64, "crops", 1),
        ],
        name="unlike_step",
    )
    # No condition input: with only a trip limit engines know how long the scan output is.
    _, choices = op.Loop(op.Squeeze(count), None, largest, body=body, _outputs=["largest_last", "choices"])
    return [op.Transpose(op.Squeeze(choices, axis2), perm=[1, 0])]


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
