"""Which rows of a decoder part are visual: what stage 2 after that part chooses among.

The first part sees it in its ids.  A later one is told by the part before, in the form of row numbers: their count is a shape,
from which an engine knows the sizes of what the part gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.layers import Op, dims

# Rows of a prompt; float32 counts exactly up to 2 ** 24.
_ROW_LIMIT = float(1 << 20)


@dataclass(frozen=True)
class VisualRows:
    """What stage 2 is given beside query and key.

    valid: [batch, rows] int64, 1 for real tokens; mask: [batch, rows] bool, true for visual rows; states: [batch, visual,
    width], the rows themselves as they enter the part (a dummy row without any).
    """

    valid: ir.Value
    mask: ir.Value
    states: ir.Value


def of_prompt(op: Op, input_ids: ir.Value, attention_mask: ir.Value, visual_embeds: ir.Value) -> VisualRows:
    """Those of the first part."""
    return VisualRows(attention_mask, op.Equal(input_ids, op.Constant(value_int=VISUAL_ROW)), visual_embeds)


def text_rows(op: Op, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """[batch, rows] bool: text, neither picture nor padding; rows of pictures have ids below 0."""
    return op.And(op.GreaterOrEqual(input_ids, op.Constant(value_int=0)), op.Cast(attention_mask, to=ir.DataType.BOOL))


def of_survivors(op: Op, hidden_states: ir.Value, last_row: ir.Value, visual_rows: ir.Value) -> VisualRows:
    """Those of a later part.  Shapes as in its contract."""
    row = _numbers(op, hidden_states)
    real = op.LessOrEqual(row, op.Unsqueeze(last_row, op.Constant(value_ints=[1])))  # padding is on the right
    none = op.Expand(op.Constant(value_float=0.0), dims(op, hidden_states, 0, 2))
    ones = op.Add(
        op.Mul(op.Cast(visual_rows, to=ir.DataType.FLOAT), op.Constant(value_float=0.0)), op.Constant(value_float=1.0)
    )
    mask = op.Cast(op.ScatterElements(none, visual_rows, ones, axis=1), to=ir.DataType.BOOL)
    states = op.GatherND(hidden_states, op.Unsqueeze(visual_rows, op.Constant(value_ints=[2])), batch_dims=1)
    return VisualRows(op.Cast(real, to=ir.DataType.INT64), mask, states)


def kept_visual_rows(op: Op, mask: ir.Value, kept_rows: ir.Value, stage2_slots: ir.Value) -> ir.Value:
    """[batch, visual_keep] int64, ascending: the survivors that are visual.

    Args:
        mask: [batch, rows] bool.
        kept_rows: [batch, survivors] int64.
        stage2_slots: [visual_keep]; only its length is read.
    """
    visual = op.GatherElements(op.Cast(mask, to=ir.DataType.FLOAT), kept_rows, axis=1)
    row = op.Cast(_numbers(op, kept_rows), to=ir.DataType.FLOAT)
    order = op.Sub(op.Mul(visual, op.Constant(value_float=_ROW_LIMIT)), row)
    _, rows = op.TopK(
        order, dims(op, stage2_slots, 0, 1), axis=1, largest=1, sorted=1, _outputs=["visual_order", "visual_survivors"]
    )
    return rows


def _numbers(op: Op, rows_of: ir.Value) -> ir.Value:
    """0, 1, ... of the rows of a tensor [batch, rows, ...]."""
    return op.Range(op.Constant(value_int=0), op.Squeeze(dims(op, rows_of, 1, 2)), op.Constant(value_int=1))
