"""A loop that chooses one row of each crop at a time: the row of least score, which then changes the others' scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from sts_export.graphs.functions import tensor
from sts_export.graphs.layers import Op, concat_dims, dims

# A score above all others, for rows that are taken; finite, so that engines may not fold it into NaN.
TAKEN = 1e30


def choose_least(
    op: Op,
    scores: ir.Value,
    first: ir.Value,
    count: ir.Value,
    update: Callable[[Op, ir.Value, ir.Value], ir.Value],
    *,
    name: str,
) -> ir.Value:
    """The rows chosen, [crops, steps] int64, in the order of choice; ties go to the lowest row.

    Args:
        scores: [crops, rows] float32, before the first choice; TAKEN for rows that may not be chosen.
        first: [crops, 1] int64, chosen first.
        count: [1] int64, how many are chosen, at least 1; called steps here.
        update: adds the nodes from ``(op, scores, last)`` to the scores after the choice of ``last``, [crops, 1] int64,
            among them TAKEN or more for ``last`` itself.  Each node of it runs in every step, and is a launch on a GPU.
        name: of the loop's body.
    """

    def step(op: Op, _step: ir.Value, _going: ir.Value, scores: ir.Value, last: ir.Value) -> list[ir.Value]:
        scores = update(op, scores, last)
        chosen = op.ArgMin(scores, axis=1, keepdims=1)
        # A constant: without a condition input, TensorRT's parser does not know the body's own one.
        going = op.Constant(value=ir.tensor(np.array(True)))
        # The scan is of what came in: with what goes out, which is carried too, it would need a copy.
        return [going, scores, chosen, last]

    body = op.builder.subgraph(
        step,
        [
            tensor("step", ir.DataType.INT64),
            tensor("going", ir.DataType.BOOL),
            tensor("scores", ir.DataType.FLOAT, "crops", "rows"),
            tensor("last", ir.DataType.INT64, "crops", 1),
        ],
        [
            tensor("still_going", ir.DataType.BOOL),
            tensor("next_scores", ir.DataType.FLOAT, "crops", "rows"),
            tensor("chosen", ir.DataType.INT64, "crops", 1),
            tensor("last_scan", ir.DataType.INT64, "crops", 1),
        ],
        name=name,
    )
    trips = op.Squeeze(op.Sub(count, op.Constant(value_ints=[1])))
    # No condition input: with only a trip limit engines know how long the scan output is.
    _, end, others = op.Loop(trips, None, scores, first, body=body, _outputs=["scores_last", "chosen_last", "others"])
    chosen = op.Concat(others, op.Unsqueeze(end, op.Constant(value_ints=[0])), axis=0)  # [steps, crops, 1]
    return op.Transpose(op.Squeeze(chosen, op.Constant(value_ints=[2])), perm=[1, 0])


def mark_diagonal(op: Op, matrix: ir.Value, row: ir.Value, features: ir.Value) -> ir.Value:
    """TAKEN on the diagonal of [crops, rows, rows].

    Written to its places: Where would hold two matrices more.

    Args:
        row: 0 .. rows - 1.
        features: [crops, rows, width]; only its shape is read, which other nodes read, too.
    """
    diagonal = concat_dims(op, dims(op, features, 0, 2), 1)
    itself = op.Expand(op.Unsqueeze(row, op.Constant(value_ints=[1])), diagonal)
    return op.ScatterElements(matrix, itself, op.Expand(op.Constant(value_float=TAKEN), diagonal), axis=2)
