"""Pivoted Cholesky of a matrix [rows, rows] of each crop: the row of largest remaining diagonal, again and again.

    j = argmax d2; e = (G_j - sum over earlier choices of c_j c) / sqrt(d2_j); d2 <- d2 - e ** 2

In exact arithmetic d2 of a Gram matrix are the squared residuals of its vectors after projection onto those chosen.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sts_export.graphs.functions import tensor
from sts_export.graphs.layers import Op, concat_dims, dims
from sts_export.graphs.stage1.rows import NO_CANDIDATE, row_numbers

# What is divided by is at least the root of this; a crop without candidates has pivots far below zero.
_LEAST_PIVOT = 1e-12


def choose_pivots(op: Op, gram: ir.Value, diagonal: ir.Value, quota: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The rows chosen, [crops, steps] int64, in the order of choice, and their d2 when they were, [crops, steps] float32.

    Ties go to the lowest row.

    Args:
        gram: [crops, rows, rows] float32.
        diagonal: [crops, rows] float32, its diagonal; NO_CANDIDATE for rows that may not be chosen.
        quota: [crops, steps] bool; only its shape is read.
    """
    row = row_numbers(op, diagonal, 1)
    axis1 = op.Constant(value_ints=[1])
    one, never, least = (
        op.Constant(value_ints=[1]),
        op.Constant(value_float=NO_CANDIDATE),
        op.Constant(value_float=_LEAST_PIVOT),
    )
    steps = dims(op, quota, 1, 2)
    of_row = op.Concat(dims(op, quota, 0, 2), one, axis=0)
    one_step = concat_dims(op, dims(op, diagonal, 0, 1), 1, dims(op, diagonal, 1, 2))

    def step(
        op: Op, number: ir.Value, _going: ir.Value, remaining: ir.Value, factors: ir.Value, pivot: ir.Value, last: ir.Value
    ) -> list[ir.Value]:
        """remaining: d2; factors: [crops, steps, rows], zeros from this step on; pivot, last: [crops, 1]."""
        of_last = op.GatherElements(factors, op.Expand(op.Unsqueeze(last, axis1), of_row), axis=2)  # [crops, steps, 1]
        known = op.MatMul(op.Transpose(of_last, perm=[0, 2, 1]), factors)  # [crops, 1, rows]
        unknown = op.Sub(op.GatherND(gram, last, batch_dims=1), op.Squeeze(known, axis1))
        factor = op.Div(unknown, op.Sqrt(op.Max(op.Abs(pivot), least)))
        remaining = op.Where(op.Equal(row, last), never, op.Sub(remaining, op.Mul(factor, factor)))
        place = op.Expand(number, one_step)
        next_factors = op.ScatterElements(factors, place, op.Unsqueeze(factor, axis1), axis=1)
        next_pivot, chosen = op.TopK(remaining, one, axis=1, _outputs=["next_pivot", "chosen"])
        going = op.Constant(value=ir.tensor(np.array(True)))
        return [going, remaining, next_factors, next_pivot, chosen, pivot, last]

    states = [
        ("remaining", ir.DataType.FLOAT, ("crops", "rows")),
        ("factors", ir.DataType.FLOAT, ("crops", "steps", "rows")),
        ("pivot", ir.DataType.FLOAT, ("crops", 1)),
        ("last", ir.DataType.INT64, ("crops", 1)),
    ]
    carried = [tensor(name, kind, *shape) for name, kind, shape in states]
    after = [tensor(f"{name}_after", kind, *shape) for name, kind, shape in states]
    scans = [tensor(f"{name}_scan", kind, *shape) for name, kind, shape in states[2:]]
    body = op.builder.subgraph(
        step,
        [tensor("step", ir.DataType.INT64), tensor("going", ir.DataType.BOOL), *carried],
        [tensor("still_going", ir.DataType.BOOL), *after, *scans],
        name="pivot_step",
    )
    first_pivot, first = op.TopK(diagonal, one, axis=1, _outputs=["first_pivot", "first"])
    no_factors = op.Expand(op.Constant(value_float=0.0), op.Concat(dims(op, quota, 0, 2), dims(op, diagonal, 1, 2), axis=0))
    names = [f"{name}_last" for name, _, _ in states] + ["pivots", "choices"]
    results = op.Loop(op.Squeeze(steps), None, diagonal, no_factors, first_pivot, first, body=body, _outputs=names)
    axis2 = op.Constant(value_ints=[2])
    pivots, choices = (op.Transpose(op.Squeeze(scan, axis2), perm=[1, 0]) for scan in results[4:])
    return choices, pivots
