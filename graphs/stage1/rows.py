"""Rows of crops as stages before the LLM count, compare, order and mark them.

``candidates`` and ``quota`` are those of ``stages.Stage1Inputs``: [crops, rows] and [crops, steps] bool.
"""

from __future__ import annotations

import onnx_ir as ir

from sts_export.graphs.layers import Op, concat_dims, dims

# Below any score, and finite, so that engines may not fold it into NaN.
NO_CANDIDATE = -1e30
# The least norm that rows are divided by.
_LEAST_NORM = 1e-12


def row_numbers(op: Op, x: ir.Value, axis: int) -> ir.Value:
    """0 .. size - 1 along ``axis`` of ``x``, int64."""
    return numbers(op, dims(op, x, axis, axis + 1))


def numbers(op: Op, count: ir.Value) -> ir.Value:
    """0, 1, ... below ``count`` [1]: [count] int64."""
    return op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))


def true_count(op: Op, mask: ir.Value) -> ir.Value:
    """How many are true in each row of ``mask`` [crops, n] bool: [crops, 1] int64."""
    return op.ReduceSum(op.Cast(mask, to=ir.DataType.INT64), op.Constant(value_ints=[1]), keepdims=1)


def unit_rows(op: Op, x: ir.Value) -> ir.Value:
    """x / max(norm, 1e-12) in float32: [..., rows, width] of any float type; rows of zeros stay so."""
    x = op.Cast(x, to=ir.DataType.FLOAT)
    norm = op.ReduceL2(x, op.Constant(value_ints=[-1]), keepdims=1)
    return op.Div(x, op.Max(norm, op.Constant(value_float=_LEAST_NORM)))


def largest_candidates(op: Op, scores: ir.Value, candidates: ir.Value, quota: ir.Value) -> ir.Value:
    """The rows of largest score, [crops, steps] int64, largest first; ties go to the lowest row.

    Args:
        scores: [crops, rows] float32, above NO_CANDIDATE.
        candidates: [crops, rows] bool; others come behind these.
        quota: [crops, steps] bool; only its shape is read.
    """
    ranked = op.Where(candidates, scores, op.Constant(value_float=NO_CANDIDATE))
    return largest_first(op, ranked, dims(op, quota, 1, 2))


def largest_first(op: Op, scores: ir.Value, count: ir.Value) -> ir.Value:
    """The ``count`` [1] rows of largest ``scores`` [crops, rows]: [crops, count] int64; ties go to the lowest row."""
    _, order = op.TopK(scores, count, axis=1, largest=1, sorted=1, _outputs=2)
    return order


def ascending(op: Op, marked: ir.Value, count: ir.Value) -> ir.Value:
    """The first ``count`` [1] rows that are ``marked`` [crops, rows] bool: [crops, count] int64.

    Rows that are not marked come behind those that are.
    """
    row = op.Cast(row_numbers(op, marked, 1), to=ir.DataType.FLOAT)
    return largest_first(op, op.Where(marked, op.Neg(row), op.Constant(value_float=NO_CANDIDATE)), count)


def mark(op: Op, rows: ir.Value, counted: ir.Value, among: ir.Value) -> ir.Value:
    """Where ``rows`` [crops, n] point to, those that are ``counted`` [crops, n] bool.

    Args:
        among: [crops, rows] of any type; only its shape is read.

    Returns:
        [crops, rows] bool.
    """
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(rows))
    marks = scatter_counted(op, op.Constant(value_float=0.0), rows, counted, ones, among)
    return op.Greater(marks, op.Constant(value_float=0.5))


def scatter_counted(op: Op, fill: ir.Value, rows: ir.Value, counted: ir.Value, values: ir.Value, among: ir.Value) -> ir.Value:
    """``values`` [crops, n] at ``rows`` [crops, n], those that are ``counted`` [crops, n] bool; elsewhere ``fill``.

    Args:
        fill: without dimensions, of the type of ``values``.
        among: [crops, rows, ...] of any type; only its shape is read.

    Returns:
        [crops, rows].
    """
    width = dims(op, among, 1, 2)
    # What does not count falls into a spare last place.
    spare = concat_dims(op, dims(op, among, 0, 1), op.Add(width, op.Constant(value_ints=[1])))
    found = op.ScatterElements(op.Expand(fill, spare), op.Where(counted, rows, width), values, axis=1)
    return op.Slice(found, op.Constant(value_ints=[0]), width, op.Constant(value_ints=[1]))
