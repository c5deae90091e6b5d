"""Rows of crops in a stage before the LLM: counting, marking, ordering and merging them.

``candidates`` and ``quota`` are those of ``stages.Stage1Inputs``: [crops, rows] and [crops, steps] bool.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sts_export.graphs.layers import Op, concat_dims, dims

# Below every score, and finite, so that engines may not fold it into NaN.
NEVER = -1e30
# Below every cosine.
_NOT_SIMILAR = -2.0
# Norms are at least this, so that a row of zeros stays one.
_LEAST_NORM = 1e-12


def numbers(op: Op, count: ir.Value) -> ir.Value:
    """0, 1, ... below ``count`` [1]: [count] int64."""
    return op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))


def true_count(op: Op, mask: ir.Value) -> ir.Value:
    """How many are true in each row of ``mask`` [crops, n] bool: [crops, 1] int64."""
    return op.ReduceSum(op.Cast(mask, to=ir.DataType.INT64), op.Constant(value_ints=[1]), keepdims=1)


def unit_vectors(op: Op, x: ir.Value) -> ir.Value:
    """``x`` [..., width] over its norm, float32."""
    x = op.Cast(x, to=ir.DataType.FLOAT)
    norm = op.Sqrt(op.ReduceSum(op.Mul(x, x), op.Constant(value_ints=[-1]), keepdims=1))
    return op.Div(x, op.Max(norm, op.Constant(value_float=_LEAST_NORM)))


def largest_first(op: Op, score: ir.Value, count: ir.Value) -> ir.Value:
    """The ``count`` [1] rows of largest ``score`` [crops, rows]: [crops, count] int64; ties go to the lowest row."""
    _, order = op.TopK(score, count, axis=1, largest=1, sorted=1, _outputs=2)
    return order


def mark(op: Op, rows: ir.Value, counted: ir.Value, among: ir.Value) -> ir.Value:
    """Where ``rows`` [crops, n] point to, those that are ``counted`` [crops, n] bool.

    Args:
        among: [crops, rows] of any type; only its shape is read.

    Returns:
        [crops, rows] bool.
    """
    width = dims(op, among, 1, 2)
    # What does not count falls into a spare last place.
    place = op.Where(counted, rows, width)
    spare = concat_dims(op, dims(op, among, 0, 1), op.Add(width, op.Constant(value_ints=[1])))
    zeros, ones = op.Expand(op.Constant(value_float=0.0), spare), op.Expand(op.Constant(value_float=1.0), op.Shape(place))
    return op.Greater(_without_spare(op, op.ScatterElements(zeros, place, ones, axis=1), width), op.Constant(value_float=0.5))


def ascending(op: Op, marked: ir.Value, count: ir.Value) -> ir.Value:
    """The first ``count`` [1] rows that are ``marked`` [crops, rows] bool: [crops, count] int64.

    Rows that are not marked come behind those that are.
    """
    row = op.Cast(numbers(op, dims(op, marked, 1, 2)), to=ir.DataType.FLOAT)
    return largest_first(op, op.Where(marked, op.Neg(row), op.Constant(value_float=NEVER)), count)


def gather_rows(op: Op, x: ir.Value, rows: ir.Value) -> ir.Value:
    """``rows`` [crops, n] int64 of ``x`` [crops, rows, width]: [crops, n, width]."""
    return op.GatherND(x, op.Unsqueeze(rows, op.Constant(value_ints=[2])), batch_dims=1)


@dataclass(frozen=True)
class Joined:
    """Rows that joined targets.

    Args:
        features: [crops, targets, width] float32, of the targets themselves.
        sums: [crops, targets, width] float32, of the features of the rows that joined each.
        counts: [crops, targets, 1] float32, how many these are.
        rows: [crops, rows] int64, the target's row that each row joined; -1 for none.
    """

    features: ir.Value
    sums: ir.Value
    counts: ir.Value
    rows: ir.Value


def join(op: Op, features: ir.Value, vectors: ir.Value, targets: ir.Value, counted: ir.Value, joining: ir.Value) -> Joined:
    """Every row that is ``joining`` goes to its most similar target; ties go to the first one.

    Args:
        features: [crops, rows, width], what is summed.
        vectors: [crops, rows, n] float32, unit vectors whose products are the similarities.
        targets: [crops, targets] int64, rows.
        counted: [crops, targets] bool, those that are targets indeed.
        joining: [crops, rows] bool; only where a crop has a target.
    """
    axis1 = op.Constant(value_ints=[1])
    x = op.Cast(features, to=ir.DataType.FLOAT)
    similarity = op.MatMul(vectors, op.Transpose(gather_rows(op, vectors, targets), perm=[0, 2, 1]))
    similarity = op.Where(op.Unsqueeze(counted, axis1), similarity, op.Constant(value_float=_NOT_SIMILAR))
    nearest = op.ArgMax(similarity, axis=2, keepdims=0)  # [crops, rows], numbers of targets
    number = op.Unsqueeze(numbers(op, dims(op, targets, 1, 2)), axis1)
    joins = op.And(op.Equal(number, op.Unsqueeze(nearest, axis1)), op.Unsqueeze(joining, axis1))
    joins = op.Cast(joins, to=ir.DataType.FLOAT)  # [crops, targets, rows]
    return Joined(
        features=gather_rows(op, x, targets),
        sums=op.MatMul(joins, x),
        counts=op.ReduceSum(joins, op.Constant(value_ints=[2]), keepdims=1),
        rows=op.Where(joining, op.GatherElements(targets, nearest, axis=1), op.Constant(value_int=-1)),
    )


def replace_rows(op: Op, features: ir.Value, targets: ir.Value, counted: ir.Value, by: ir.Value) -> ir.Value:
    """``features`` [crops, rows, width] with the rows ``targets`` [crops, n] replaced, those that are ``counted`` [crops, n].

    Args:
        by: [crops, n, width] float32, rounded to the type of ``features``.
    """
    width, axis2 = dims(op, features, 1, 2), op.Constant(value_ints=[2])
    spare = concat_dims(op, dims(op, features, 0, 1), op.Add(width, op.Constant(value_ints=[1])))
    place = op.Where(counted, targets, width)
    number = op.Expand(numbers(op, dims(op, targets, 1, 2)), op.Shape(place))
    none = op.Expand(op.Constant(value_int=-1), spare)
    number = _without_spare(op, op.ScatterElements(none, place, number, axis=1), width)  # [crops, rows]; -1: not replaced
    zero = op.Constant(value_int=0)
    replaced = op.Unsqueeze(op.GreaterOrEqual(number, zero), axis2)
    return op.Where(replaced, op.CastLike(gather_rows(op, by, op.Max(number, zero)), features), features)


def _without_spare(op: Op, x: ir.Value, width: ir.Value) -> ir.Value:
    return op.Slice(x, op.Constant(value_ints=[0]), width, op.Constant(value_ints=[1]))
