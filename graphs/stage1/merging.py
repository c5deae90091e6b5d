"""Rows of crops that join others: what stages before the LLM merge."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sts_export.graphs.layers import Op
from sts_export.graphs.stage1.rows import row_numbers, scatter_counted

# Below every cosine.
_NOT_SIMILAR = -2.0


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
    number = op.Unsqueeze(row_numbers(op, targets, 1), axis1)
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
    axis2, zero, none = op.Constant(value_ints=[2]), op.Constant(value_int=0), op.Constant(value_int=-1)
    number = op.Expand(row_numbers(op, targets, 1), op.Shape(targets))
    number = scatter_counted(op, none, targets, counted, number, features)  # [crops, rows]; -1: not replaced
    replaced = op.Unsqueeze(op.GreaterOrEqual(number, zero), axis2)
    return op.Where(replaced, op.CastLike(gather_rows(op, by, op.Max(number, zero)), features), features)
