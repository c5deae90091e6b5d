"""Pivoted residual QR: the token that those chosen explain least (docs/methods/starpro.md).

    R = features; repeat i = argmax |R_i|^2, q = R_i / |R_i|, R <- R - (R q) q^T
    once the largest squared residual is at most 1e-8: the rest by original norm, largest first

Source: STAR-Pro's public code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

# Squared residuals up to this are none.
EXHAUSTED = 1e-8
# Squared residuals by subtraction lose digits as they shrink: they count down to this share of the largest original square.
TRUSTED = 1 / 64
# No kernel of a CPU computes more rows at once.
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class ResidualQr(Stage1):
    """Tokens that span the picture's features."""

    name: ClassVar[str] = "residual-qr"
    summary: ClassVar[str] = "tokens that those chosen explain least, by pivoted QR (STAR-Pro)"

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.stages import Stage1Choice

        operands = inputs.features, inputs.candidates, inputs.quota
        return Stage1Choice(op.call(residual_select(), *operands, _outputs=["chosen"]))

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # Products of all pairs, and the factors of up to half as many choices as there are rows, before and after a step.
        return 2 * max_crops * max_rows**2 * 4


STAGE = ResidualQr


def _residual_body(op: Op, features: ir.Value, candidates: ir.Value, quota: ir.Value) -> list[ir.Value]:
    import onnx_ir as ir

    from sts_export.graphs.layers import dims
    from sts_export.graphs.stage1.pivots import choose_pivots
    from sts_export.graphs.stage1.rows import NO_CANDIDATE

    x, candidates = _padded(op, op.Cast(features, to=ir.DataType.FLOAT), candidates)
    norms = op.ReduceSumSquare(x, op.Constant(value_ints=[2]), keepdims=0)  # [crops, rows]
    norms = op.Where(candidates, norms, op.Constant(value_float=NO_CANDIDATE))
    gram = op.MatMul(x, op.Transpose(x, perm=[0, 2, 1]))
    fast, pivots = choose_pivots(op, gram, norms, quota)
    chosen = _deflate(op, x, norms, fast, _doubtful(op, norms, fast, pivots, quota))
    # Where a crop has no candidate left, padding may have been chosen.
    return [op.Min(chosen, op.Sub(dims(op, features, 1, 2), op.Constant(value_ints=[1])))]


def _padded(op: Op, x: ir.Value, candidates: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Rows of zeros that are no candidates, up to a multiple of ROW_MULTIPLE.

    CPU kernels compute the last few numbers of a product in another order.  With whole blocks, equal rows stay equal to the
    last bit, as ties have to.
    """
    import onnx_ir as ir

    from sts_export.graphs.layers import concat_dims, dims

    multiple, zero = op.Constant(value_ints=[ROW_MULTIPLE]), op.Constant(value_ints=[0])
    more = op.Mod(op.Sub(multiple, op.Mod(dims(op, x, 1, 2), multiple)), multiple)
    x = op.Pad(x, concat_dims(op, 0, 0, 0, 0, more, 0))
    flags = op.Pad(op.Cast(candidates, to=ir.DataType.FLOAT), op.Concat(zero, zero, zero, more, axis=0))
    return x, op.Greater(flags, op.Constant(value_float=0.5))


def _doubtful(op: Op, norms: ir.Value, chosen: ir.Value, pivots: ir.Value, quota: ir.Value) -> ir.Value:
    """Did the subtractions lose too much for a choice that counts?  A bool without dimensions.

    The error of each row's residual is a few roundings of its original square, so rows chosen before do not matter.
    """
    import onnx_ir as ir

    from sts_export.graphs.stage1.rows import NO_CANDIDATE, row_numbers

    axis1, axis2, never = op.Constant(value_ints=[1]), op.Constant(value_ints=[2]), op.Constant(value_float=NO_CANDIDATE)
    taken = op.Expand(never, op.Shape(chosen))
    at_end = op.ReduceMax(op.ScatterElements(norms, chosen, taken, axis=1), axis1, keepdims=1)  # [crops, 1]
    step = row_numbers(op, chosen, 1)
    later = op.Unsqueeze(op.LessOrEqual(op.Unsqueeze(step, axis1), step), op.Constant(value_ints=[0]))
    of_chosen = op.Unsqueeze(op.GatherElements(norms, chosen, axis=1), axis1)
    largest = op.Max(at_end, op.ReduceMax(op.Where(later, of_chosen, never), axis2, keepdims=0))  # [crops, steps]
    too_small = op.Or(
        op.Less(pivots, op.Mul(largest, op.Constant(value_float=TRUSTED))),
        op.LessOrEqual(pivots, op.Constant(value_float=EXHAUSTED)),
    )
    count = op.ReduceMax(op.Cast(op.And(quota, too_small), to=ir.DataType.FLOAT), keepdims=0)
    return op.Greater(count, op.Constant(value_float=0.5))


def _deflate(op: Op, x: ir.Value, norms: ir.Value, chosen: ir.Value, doubtful: ir.Value) -> ir.Value:
    """The same choices from the residuals themselves, [crops, steps] int64; ``chosen`` as it is where nothing is doubtful."""
    import onnx_ir as ir

    from sts_export.graphs.functions import tensor
    from sts_export.graphs.layers import concat_dims, dims
    from sts_export.graphs.stage1.rows import NO_CANDIDATE, row_numbers

    axis1, axis2 = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
    never, exhausted = op.Constant(value_float=NO_CANDIDATE), op.Constant(value_float=EXHAUSTED)
    zero, half, one = op.Constant(value_float=0.0), op.Constant(value_float=0.5), op.Constant(value_ints=[1])
    row = row_numbers(op, norms, 1)
    one_place = concat_dims(op, dims(op, norms, 0, 1), 1)

    def step(
        op: Op, number: ir.Value, _going: ir.Value, residual: ir.Value, free: ir.Value, choices: ir.Value, _done: ir.Value
    ) -> list[ir.Value]:
        """residual: [crops, rows, width]; free: norms, NO_CANDIDATE for what is taken; choices: [crops, steps]."""
        squares = op.ReduceSumSquare(residual, axis2, keepdims=0)
        squares = op.Where(op.Greater(free, zero), squares, free)
        left = op.Greater(op.ReduceMax(squares, axis1, keepdims=1), exhausted)  # [crops, 1]
        last = op.ArgMax(op.Where(left, squares, free), axis=1, keepdims=1)
        square = op.Where(left, op.GatherElements(squares, last, axis=1), op.Constant(value_float=1.0))
        direction = op.Div(op.GatherND(residual, last, batch_dims=1), op.Sqrt(square))
        direction = op.Where(left, direction, zero)  # [crops, width]
        along = op.MatMul(residual, op.Unsqueeze(direction, axis2))  # [crops, rows, 1]
        residual = op.Sub(residual, op.Mul(along, op.Unsqueeze(direction, axis1)))
        free = op.Where(op.Equal(row, last), never, free)
        choices = op.ScatterElements(choices, op.Expand(number, one_place), last, axis=1)
        going = op.Greater(op.ReduceMax(op.Cast(left, to=ir.DataType.FLOAT), keepdims=0), half)
        return [going, residual, free, choices, op.Add(op.Unsqueeze(number, op.Constant(value_ints=[0])), one)]

    states = [
        ("residual", ir.DataType.FLOAT, ("crops", "rows", "width")),
        ("free", ir.DataType.FLOAT, ("crops", "rows")),
        ("choices", ir.DataType.INT64, ("crops", "steps")),
        ("done", ir.DataType.INT64, (1,)),
    ]
    carried = [tensor(name, kind, *shape) for name, kind, shape in states]
    after = [tensor(f"{name}_after", kind, *shape) for name, kind, shape in states]
    body = op.builder.subgraph(
        step,
        [tensor("step", ir.DataType.INT64), tensor("going", ir.DataType.BOOL), *carried],
        [tensor("still_going", ir.DataType.BOOL), *after],
        name="deflation_step",
    )
    trips = op.Squeeze(dims(op, chosen, 1, 2))
    none_done = op.Constant(value_ints=[0])
    names = ["residual_last", "free_last", "deflated", "done_last"]
    _, free, choices, done = op.Loop(trips, doubtful, x, norms, chosen, none_done, body=body, _outputs=names)
    # Once no crop has anything left, the norms decide all at once.
    _, rest = op.TopK(free, dims(op, chosen, 1, 2), axis=1, _outputs=["rest_norms", "rest"])
    behind = op.Sub(row_numbers(op, chosen, 1), done)
    filled = op.GatherElements(rest, op.Expand(op.Max(behind, none_done), op.Shape(rest)), axis=1)
    by_norm = op.And(doubtful, op.GreaterOrEqual(behind, none_done))
    return op.Where(by_norm, filled, choices)


def residual_select() -> ir.Function:
    """``sts::ResidualSelect(features, candidates, quota) -> chosen``: the greedy choices of pivoted residual QR.

    Residuals are subtracted from a Gram matrix, as in a pivoted Cholesky decomposition, which costs a product of the factors
    a step.  Where a choice would rest on too few digits (near duplicates, more choices than the rank), the choices are made
    again from the residual vectors.

    Inputs:
        features: [crops, rows, width] float32, float16 or bfloat16
        candidates: [crops, rows] bool; rows that may be chosen
        quota: [crops, steps] bool; where it is false a choice does not count
    Output:
        chosen: [crops, steps] int64, in the order of choice; ties go to the lowest row.  Once a crop has no candidate left
            its further choices mean nothing
    """
    import onnx_ir as ir

    from sts_export.graphs.functions import function, tensor

    inputs = [
        tensor("features"),
        tensor("candidates", ir.DataType.BOOL, "crops", "rows"),
        tensor("quota", ir.DataType.BOOL, "crops", "steps"),
    ]
    return function("ResidualSelect", _residual_body, inputs, {})
