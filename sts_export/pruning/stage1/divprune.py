"""DivPrune: the smallest distance between kept tokens made large, in the LLM's space (docs/methods/divprune.md).

    D_ij = 1 - cos(x_i, x_j), x projected      first: the token whose nearest other one is farthest
    then the token whose nearest kept one is farthest, until K are chosen

Source: DivPrune's public code.  All N tokens are projected for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import PROJECTED
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

# Below any cosine, and finite, so that engines may not fold it into NaN.
_NONE = -1e30
# float32 numbers: matrices of all cosines of an image are copied up to this many, 64 MiB, as of one crop of 4096 rows.
MATRIX_LIMIT = 4096 * 4096
# Rows that are looked at together for the first token of larger images.
BLOCK = 256


@dataclass(frozen=True)
class DivPrune(Stage1):
    """Tokens that point in different directions."""

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "tokens whose least cosine distance is large (DivPrune)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PROJECTED})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.stages import Stage1Choice

        function = max_min_select(by_row=_by_row(inputs.max_crops, inputs.max_rows))
        return Stage1Choice(op.call(function, inputs.projected, inputs.candidates, inputs.quota, _outputs=["chosen"]))

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # Cosines; beside them those of pairs alone and those of the loop, or a few blocks, which are little.
        matrices = 1 if _by_row(max_crops, max_rows) else 3
        return matrices * max_crops * max_rows**2 * 4


STAGE = DivPrune


def _by_row(max_crops: int, max_rows: int) -> bool:
    """Which form of the function a graph takes."""
    return max_crops * max_rows**2 > MATRIX_LIMIT


def _nearest(op: Op, cosines: ir.Value, rows: ir.Value, others: ir.Value, candidates: ir.Value) -> ir.Value:
    """Largest cosine to another candidate, [crops, some]: [crops, some, rows], [some] and [rows] int64, [crops, rows]."""
    axis1 = op.Constant(value_ints=[1])
    differ = op.Not(op.Equal(op.Unsqueeze(rows, axis1), others))
    pairs = op.And(op.Unsqueeze(candidates, axis1), op.Unsqueeze(differ, op.Constant(value_ints=[0])))
    among_pairs = op.Where(pairs, cosines, op.Constant(value_float=_NONE))
    return op.ReduceMax(among_pairs, op.Constant(value_ints=[2]), keepdims=0)


def _nearest_in_blocks(op: Op, cosines: ir.Value, candidates: ir.Value) -> ir.Value:
    """The same of all rows, [crops, rows], without a second matrix."""
    import numpy as np
    import onnx_ir as ir

    from sts_export.graphs.functions import tensor
    from sts_export.graphs.layers import concat_dims, dims
    from sts_export.graphs.stage1.rows import row_numbers

    row, size = row_numbers(op, cosines, 1), op.Squeeze(dims(op, cosines, 1, 2))
    zero, one, block = (op.Constant(value_int=number) for number in (0, 1, BLOCK))
    last, within = op.Sub(size, one), op.Range(zero, block, one)

    def step(op: Op, number: ir.Value, _going: ir.Value) -> list[ir.Value]:
        # The last block reads the last row several times.
        rows = op.Min(op.Add(op.Mul(number, block), within), last)
        nearest = _nearest(op, op.Gather(cosines, rows, axis=1), rows, row, candidates)
        return [op.Constant(value=ir.tensor(np.array(True))), nearest]

    body = op.builder.subgraph(
        step,
        [tensor("block", ir.DataType.INT64), tensor("going", ir.DataType.BOOL)],
        [tensor("still_going", ir.DataType.BOOL), tensor("block_nearest", ir.DataType.FLOAT, "crops", BLOCK)],
        name="nearest_step",
    )
    blocks = op.Div(op.Add(last, block), block)
    found = op.Transpose(op.Loop(blocks, None, body=body, _outputs=["nearest_blocks"]), perm=[1, 0, 2])
    flat = op.Reshape(found, concat_dims(op, dims(op, cosines, 0, 1), -1))
    return op.Slice(flat, op.Constant(value_ints=[0]), dims(op, cosines, 1, 2), op.Constant(value_ints=[1]))


def _max_min_body(op: Op, features: ir.Value, candidates: ir.Value, quota: ir.Value, *, by_row: bool) -> list[ir.Value]:
    from sts_export.graphs.layers import dims
    from sts_export.graphs.stage1.greedy import TAKEN, choose_least, mark_diagonal
    from sts_export.graphs.stage1.rows import row_numbers, unit_rows

    units = unit_rows(op, features)
    cosines = op.MatMul(units, op.Transpose(units, perm=[0, 2, 1]))  # [crops, rows, rows]
    row = row_numbers(op, features, 1)
    taken, none = op.Constant(value_float=TAKEN), op.Constant(value_float=_NONE)

    # Cosines throughout, not 1 minus them, which would round them.
    matrix = None
    if by_row:
        nearest_other = _nearest_in_blocks(op, cosines, candidates)
    else:
        nearest_other = _nearest(op, cosines, row, row, candidates)
        matrix = mark_diagonal(op, cosines, row, features)
    first = op.ArgMin(op.Where(candidates, nearest_other, taken), axis=1, keepdims=1)

    def nearer(op: Op, nearest: ir.Value, last: ir.Value) -> ir.Value:
        """nearest: [crops, rows], largest cosine to what has been chosen."""
        of_last = op.GatherND(cosines if matrix is None else matrix, last, batch_dims=1)
        if matrix is None:
            of_last = op.Where(op.Equal(row, last), taken, of_last)
        return op.Max(nearest, of_last)

    nearest = op.Where(candidates, none, taken)
    return [choose_least(op, nearest, first, dims(op, quota, 1, 2), nearer, name="max_min_step")]


def max_min_select(*, by_row: bool = False) -> ir.Function:
    """``sts::MaxMinSelect(features, candidates, quota) -> chosen``: the greedy choices of DivPrune.

    Both forms choose the same, since each cosine comes from one product.

    Args:
        by_row: hold one matrix [crops, rows, rows] instead of three, and mark what is taken in each step.
    Inputs:
        features: [crops, rows, width] float32, float16 or bfloat16
        candidates: [crops, rows] bool; rows that may be chosen
        quota: [crops, steps] bool; only its shape is read
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
    return function("MaxMinSelect", partial(_max_min_body, by_row=by_row), inputs, {})
