"""Rows of a crop as stages before the LLM compare and order them."""

from __future__ import annotations

import onnx_ir as ir

from sts_export.graphs.layers import Op, dims

# Below any score, and finite, so that engines may not fold it into NaN.
NO_CANDIDATE = -1e30
# The least norm that rows are divided by.
_LEAST_NORM = 1e-12


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
    _, chosen = op.TopK(ranked, dims(op, quota, 1, 2), axis=1, largest=1, sorted=1, _outputs=["largest_scores", "chosen"])
    return chosen


def row_numbers(op: Op, x: ir.Value, axis: int) -> ir.Value:
    """0 .. size - 1 along ``axis`` of ``x``, int64."""
    size = op.Squeeze(dims(op, x, axis, axis + 1))
    return op.Range(op.Constant(value_int=0), size, op.Constant(value_int=1))
