"""Rows of a vision tower's attention, computed again for just those: its fused operator gives none.

Queries and keys are those that the operator takes, [crops, heads, rows, head_dim] in any floating-point type.  Scores,
softmax and means are float32.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_ir as ir

from sts_export.graphs.functions import tensor
from sts_export.graphs.layers import Op, concat_dims, dims
from sts_export.graphs.towers.observed import OBSERVED, Depths, Sight, Steps


def _turned(op: Op, key: ir.Value) -> ir.Value:
    """[crops, heads, head_dim, rows] float32"""
    return op.Transpose(op.Cast(key, to=ir.DataType.FLOAT), perm=[0, 1, 3, 2])


def attention_of_first(op: Op, query: ir.Value, key: ir.Value, scale: float) -> ir.Value:
    """[crops, rows] float32: attention of each crop's first row, its CLS token, to all rows; mean over heads."""
    first = op.Cast(
        op.Slice(query, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[2])),
        to=ir.DataType.FLOAT,
    )
    scores = op.Mul(op.MatMul(first, _turned(op, key)), op.Constant(value_float=scale))
    return op.ReduceMean(op.Softmax(scores, axis=-1), op.Constant(value_ints=[1, 2]), keepdims=0)


def received_attention(
    op: Op, query: ir.Value, key: ir.Value, *, heads: int, scale: float, skip: int, steps: Steps
) -> ir.Value:
    """[crops, rows] float32: attention that each row receives; mean over heads and over the querying rows.

    All probabilities, [crops, heads, rows, rows], would be a gigabyte and more for large pictures.  A loop computes those of
    some queries in a step and holds these only; one sum a row goes from step to step.

    Args:
        skip: so many rows at the beginning do not count as querying rows, such as a CLS token.
        steps: enough for the rows of the largest picture; a smaller one has steps without queries.
    """
    axis0, axis1 = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    keys = _turned(op, key)
    rows = dims(op, query, 2, 3)
    last = op.Sub(rows, axis1)
    factor, size = op.Constant(value_float=scale), op.Constant(value_int=steps.at_once)
    places = op.Constant(value=ir.tensor(np.arange(skip, skip + steps.at_once)))
    end = op.Squeeze(op.Sub(rows, op.Constant(value_ints=[skip + steps.at_once])), axis0)

    def step(op: Op, number: ir.Value, _going: ir.Value, sums: ir.Value) -> list[ir.Value]:
        place = op.Add(op.Mul(number, size), places)
        # Steps are of one size.  Beyond the rows the last one asks again, and then counts nothing.
        asking = op.Cast(op.Gather(query, op.Min(place, last), axis=2), to=ir.DataType.FLOAT)
        probabilities = op.Softmax(op.MatMul(op.Mul(asking, factor), keys), axis=-1)
        of_all_heads = op.ReduceSum(probabilities, axis1, keepdims=0)  # [crops, queries, rows]
        counts = op.Unsqueeze(op.Cast(op.Less(place, rows), to=ir.DataType.FLOAT), axis1)  # [queries, 1]
        # Further steps would add nothing.  ONNX Runtime leaves them out; without a condition input others may take them.
        going = op.Less(op.Mul(number, size), end)
        return [going, op.Add(sums, op.ReduceSum(op.Mul(of_all_heads, counts), axis1, keepdims=0))]

    body = op.builder.subgraph(
        step,
        [
            tensor("step", ir.DataType.INT64),
            tensor("going", ir.DataType.BOOL),
            tensor("sums", ir.DataType.FLOAT, "crops", "rows"),
        ],
        [tensor("still_going", ir.DataType.BOOL), tensor("next_sums", ir.DataType.FLOAT, "crops", "rows")],
        name="received_attention",
    )
    none = op.Expand(op.Constant(value_float=0.0), concat_dims(op, dims(op, query, 0, 1), rows))
    # A constant number of steps, no condition input and steps of one size: with any of them otherwise, TensorRT-RTX 1.7.1
    # crashes as it builds a network that has attention of any number of rows, too.
    sums = op.Loop(op.Constant(value_int=steps.count), None, none, body=body, _outputs=["received_sums"])
    queries = op.Cast(op.Sub(rows, op.Constant(value_ints=[skip])), to=ir.DataType.FLOAT)
    return op.Div(sums, op.Mul(queries, op.Constant(value_float=float(heads))))


def observed_outputs(op: Op, needs: Set[str], depths: Depths, found: dict[int, dict[Sight, ir.Value]]) -> list[ir.Value]:
    """The encoder's outputs for ``needs``, in their order, from what layers showed.

    Early, middle and feature layer are one in a tower of few layers, but outputs are values of their own.
    """
    values = [found[depths.of(depth)][sight] for name, (sight, depth) in OBSERVED.items() if name in needs]
    seen: set[int] = set()
    outputs = []
    for value in values:
        outputs.append(op.Identity(value) if id(value) in seen else value)
        seen.add(id(value))
    return outputs
