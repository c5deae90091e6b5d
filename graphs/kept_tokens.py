"""From what stage 1 chose, crop by crop, to the tokens of the image in the order of the prompt.

``token_order`` [tokens] int64 names the feature row, counted over all crops, of each token that the model reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sts_export.graphs.layers import Op, dims
from sts_export.graphs.stages import Stage1Choice

# Tokens of an image; float32 counts exactly up to 2 ** 24.
_TOKEN_LIMIT = float(1 << 20)


@dataclass(frozen=True)
class KeptTokens:
    """What stays, those within quota first and in the order of the prompt.

    index: [kept] int64, positions in token_order; below 0 for CLS tokens.
    rows: [kept] int64, rows of the table of features, counted over all crops; a CLS token is the last row of its crop.
    """

    index: ir.Value
    rows: ir.Value


def candidate_rows(op: Op, features: ir.Value, token_order: ir.Value) -> ir.Value:
    """[crops, rows] bool: the rows that are tokens."""
    crops_rows = dims(op, features, 0, 2)
    table = op.Expand(op.Constant(value_float=0.0), _all_rows(op, features))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(token_order))
    read = op.ScatterElements(table, token_order, ones, axis=0)
    return op.Greater(op.Reshape(read, crops_rows), op.Constant(value_float=0.5))


def keep_chosen(
    op: Op, choice: Stage1Choice, features: ir.Value, token_order: ir.Value, quota: ir.Value, *, with_cls: bool
) -> KeptTokens:
    """The chosen tokens of all crops.

    Args:
        features: [crops, rows, width]; only its shape is read.
        token_order: [tokens] int64.
        quota: [crops, steps] bool; choices beyond it do not count.
        with_cls: row ``rows`` of a crop is its CLS token.  These stand before all others.
    """
    chosen = choice.chosen
    chosen.type, chosen.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["crops", "steps"])
    crop = op.Range(op.Constant(value_int=0), op.Squeeze(dims(op, features, 0, 1)), op.Constant(value_int=1))
    rows = dims(op, features, 1, 2)
    order = token_order
    if with_cls:
        cls_row = rows
        rows = op.Add(rows, op.Constant(value_ints=[1]))
        cls_rows = op.Add(op.Mul(crop, rows), cls_row)
        order = op.Concat(cls_rows, op.Add(token_order, op.Div(token_order, cls_row)), axis=0)
    all_rows = op.Mul(dims(op, features, 0, 1), rows)

    # Choices beyond a crop's quota fall into a spare last place.
    offset = op.Unsqueeze(op.Mul(crop, rows), op.Constant(value_ints=[1]))
    place = op.Reshape(op.Where(quota, op.Add(chosen, offset), all_rows), op.Constant(value_ints=[-1]))
    spare = op.Expand(op.Constant(value_float=0.0), op.Add(all_rows, op.Constant(value_ints=[1])))
    mark = op.Expand(op.Constant(value_float=1.0), op.Shape(place))
    if choice.last is not None:
        mark = op.Where(op.Reshape(choice.last, op.Constant(value_ints=[-1])), mark, op.Add(mark, mark))
    marks = op.ScatterElements(spare, place, mark, axis=0)

    position = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(order)), op.Constant(value_int=1))
    rank = op.Sub(
        op.Mul(op.Gather(marks, order), op.Constant(value_float=_TOKEN_LIMIT)), op.Cast(position, to=ir.DataType.FLOAT)
    )
    count = op.Min(op.Mul(dims(op, quota, 0, 1), dims(op, quota, 1, 2)), op.Shape(token_order))
    _, kept = op.TopK(rank, count, axis=0, largest=1, sorted=1, _outputs=["kept_order", "kept"])
    index = op.Sub(kept, dims(op, features, 0, 1)) if with_cls else kept
    return KeptTokens(index, op.Gather(order, kept))


def merged_into(op: Op, joined: ir.Value | None, features: ir.Value, token_order: ir.Value) -> ir.Value:
    """[tokens] int64: the position in token_order that each token was merged into, -1 for none.

    Args:
        joined: [crops, rows] int64, a row of the same crop, or -1.
        features: [crops, rows, width]; only its shape is read.
    """
    if joined is None:
        raise ValueError("a stage that merges has to say what each row was merged into")
    flat = op.Reshape(joined, op.Constant(value_ints=[-1]))
    of_token = op.Gather(flat, token_order)
    rows = dims(op, features, 1, 2)
    target = op.Add(op.Max(of_token, op.Constant(value_int=0)), op.Mul(op.Div(token_order, rows), rows))
    position = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(token_order)), op.Constant(value_int=1))
    numbers = op.ScatterElements(
        op.Expand(op.Constant(value_float=0.0), _all_rows(op, features)),
        token_order,
        op.Cast(position, to=ir.DataType.FLOAT),
        axis=0,
    )
    number = op.Cast(op.Gather(numbers, target), to=ir.DataType.INT64)
    return op.Where(op.Less(of_token, op.Constant(value_int=0)), op.Constant(value_int=-1), number)


def _all_rows(op: Op, features: ir.Value) -> ir.Value:
    """[1] int64: rows of all crops."""
    return op.Mul(dims(op, features, 0, 1), dims(op, features, 1, 2))
