"""Which rows a stage inside the LLM asks, and which it leaves: text rows and K' visual rows."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sts_export.graphs.layers import Op, dims

# Below any score of a visual row.
NOT_VISUAL = -1e30
# Rows of a prompt; float32 counts exactly up to 2 ** 24.
ROW_LIMIT = float(1 << 20)


@dataclass(frozen=True)
class PromptRows:
    """The rows of a call: their number [1], 0 .. number - 1 [rows], and each request's last real one [batch, 1]; all int64."""

    count: ir.Value
    index: ir.Value
    last: ir.Value
    axis: ir.Value  # the constant 1


def prompt_rows(op: Op, attention_mask: ir.Value) -> PromptRows:
    """attention_mask: [batch, rows] int64, 1 for real tokens; the last of them is found by the mask."""
    axis = op.Constant(value_ints=[1])
    count = dims(op, attention_mask, 1, 2)
    index = op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))
    return PromptRows(count, index, op.ReduceMax(op.Mul(index, attention_mask), axis, keepdims=1), axis)


def rows_behind_pictures(op: Op, text_rows: ir.Value, attention_mask: ir.Value, rows: PromptRows) -> ir.Value:
    """[batch, rows] bool: text behind the last row of a picture, be it visual or a newline; without pictures all text.

    Args:
        text_rows, attention_mask: as in Stage2Inputs.
    """
    real = op.Cast(attention_mask, to=ir.DataType.BOOL)
    picture = op.Cast(op.And(real, op.Not(text_rows)), to=ir.DataType.INT64)
    # Counted from 1, so that 0 says that there is none.
    one = op.Constant(value_int=1)
    number = op.Add(rows.index, one)
    last = op.ReduceMax(op.Mul(picture, number), rows.axis, keepdims=1)
    return op.And(text_rows, op.Greater(number, last))


def keep_largest(
    op: Op,
    scores: ir.Value,
    rows: PromptRows,
    visual_mask: ir.Value,
    visual_embeds: ir.Value,
    stage2_slots: ir.Value,
    *,
    ends_in_text: bool = False,
) -> tuple[ir.Value, ir.Value]:
    """kept_rows and last_row of a stage (graphs/stages.py) from its scores.

    Args:
        scores: [batch, rows] float32, above NOT_VISUAL; ties go to the lowest row.
        visual_mask, visual_embeds, stage2_slots: as in Stage2Inputs.
        ends_in_text: as for :func:`keep_marked`.
    """
    visual_keep = dims(op, stage2_slots, 0, 1)
    ranked = op.Where(visual_mask, scores, op.Constant(value_float=NOT_VISUAL))
    _, winners = op.TopK(ranked, visual_keep, axis=1, largest=1, sorted=1, _outputs=["winner_scores", "winners"])
    # Text rows survive, and so do the winners.  In decode the dummy visual row elects row 0, which is text anyway.
    kept = op.Cast(op.Not(visual_mask), to=ir.DataType.FLOAT)
    ones = op.Add(op.Mul(op.Cast(winners, to=ir.DataType.FLOAT), op.Constant(value_float=0.0)), op.Constant(value_float=1.0))
    marks = op.ScatterElements(kept, winners, ones, axis=1)
    return keep_marked(op, marks, rows, visual_embeds, stage2_slots, ends_in_text=ends_in_text)


def keep_marked(
    op: Op,
    marks: ir.Value,
    rows: PromptRows,
    visual_embeds: ir.Value,
    stage2_slots: ir.Value,
    *,
    ends_in_text: bool = False,
) -> tuple[ir.Value, ir.Value]:
    """kept_rows and last_row of a stage that has marked what it keeps.

    Args:
        marks: [batch, rows] float32, 1 for the rows that stay, which are all rows that are not visual and K' that are; else 0.
        visual_embeds, stage2_slots: as in Stage2Inputs.
        ends_in_text: the last real row of every prompt is text, so that it survives; which saves a node.
    """
    order = op.Sub(op.Mul(marks, op.Constant(value_float=ROW_LIMIT)), op.Cast(rows.index, to=ir.DataType.FLOAT))
    survivors = op.Add(op.Sub(rows.count, dims(op, visual_embeds, 1, 2)), dims(op, stage2_slots, 0, 1))
    _, kept_rows = op.TopK(order, survivors, axis=1, largest=1, sorted=1, _outputs=["kept_order", "kept_rows"])
    if ends_in_text:
        before = op.Cast(op.Less(kept_rows, rows.last), to=ir.DataType.INT64)
        return kept_rows, op.ReduceSum(before, rows.axis, keepdims=0)
    real = op.Cast(op.LessOrEqual(kept_rows, rows.last), to=ir.DataType.INT64)
    return kept_rows, op.Sub(op.ReduceSum(real, rows.axis, keepdims=0), rows.axis)
