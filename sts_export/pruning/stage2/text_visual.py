"""Text-to-visual attention of the rows behind the pictures: stage 2 of STAR, LearnPruner and STAR-Pro.

    R(v) = mean over heads and text rows t behind the last picture of softmax(q_t k / sqrt(d))[v]; the K' rows of largest R

Without text behind the last picture the last real row is asked.  Source: arXiv 2505.12359 and 2604.23950.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import NEXT_QUERY_KEY, OWN_QUERY_KEY, TEXT_ROWS
from sts_export.pruning.stage import Stage2
from sts_export.pruning.stage2.last_token import ScoreLayer

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.configs import DecoderConfig
    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage2Inputs
    from sts_export.graphs.survivors import PromptRows


@dataclass(frozen=True)
class TextVisual(Stage2):
    """The visual rows that the text behind the pictures attends to.

    Args:
        score_layer: whose attention it is, of the ``own`` last lower layer or of the ``next`` (first upper) one.
    """

    name: ClassVar[str] = "text-visual"
    summary: ClassVar[str] = "what the text behind the pictures attends to, on average (STAR, LearnPruner)"

    score_layer: ScoreLayer = "own"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({NEXT_QUERY_KEY if self.score_layer == "next" else OWN_QUERY_KEY, TEXT_ROWS})

    def build(self, op: Op, inputs: Stage2Inputs) -> tuple[ir.Value, ir.Value]:
        import onnx_ir as ir

        from sts_export.graphs.layers import concat_dims, dims
        from sts_export.graphs.survivors import NOT_VISUAL, keep_largest, prompt_rows

        rows = prompt_rows(op, inputs.attention_mask)
        asked, weight = _asked_rows(op, inputs, rows)
        axis1, axis2 = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
        by_row = op.GatherND(op.Transpose(inputs.query, perm=[0, 2, 1, 3]), op.Unsqueeze(asked, axis2), batch_dims=1)
        query = op.Cast(op.Transpose(by_row, perm=[0, 2, 1, 3]), to=ir.DataType.FLOAT)  # [batch, heads, asked, head_dim]
        query = op.Mul(query, op.Constant(value_float=inputs.scale))
        shape = concat_dims(op, dims(op, inputs.key, 0, 2), -1, dims(op, inputs.key, 3, 4))
        grouped = op.Reshape(query, shape)  # [batch, kv_heads, group * asked, head_dim]
        products = op.MatMul(grouped, op.Transpose(op.Cast(inputs.key, to=ir.DataType.FLOAT), perm=[0, 1, 3, 2]))
        scores = op.Reshape(products, concat_dims(op, dims(op, query, 0, 3), rows.count))  # [batch, heads, asked, rows]
        real = op.Unsqueeze(op.Cast(inputs.attention_mask, to=ir.DataType.BOOL), axis1)
        allowed = op.And(op.LessOrEqual(rows.index, op.Unsqueeze(asked, axis2)), real)  # [batch, asked, rows]
        scores = op.Where(op.Unsqueeze(allowed, axis1), scores, op.Constant(value_float=NOT_VISUAL))
        attention = op.ReduceMean(op.Softmax(scores, axis=-1), axis1, keepdims=0)  # [batch, asked, rows]
        mean = op.Squeeze(op.MatMul(op.Unsqueeze(weight, axis1), attention), axis1)  # [batch, rows]
        return keep_largest(op, mean, rows, inputs.visual_mask, inputs.visual_embeds, inputs.stage2_slots)

    def scratch_bytes(self, decoder: DecoderConfig, rows: int) -> int:
        # Scores of every head before and after the softmax.  Without pictures all rows are asked, and engines plan for that.
        return 2 * decoder.num_heads * rows**2 * 4


STAGE = TextVisual


def _asked_rows(op: Op, inputs: Stage2Inputs, rows: PromptRows) -> tuple[ir.Value, ir.Value]:
    """[batch, asked] int64, the rows whose attention counts, and others behind them; and their weights, float32, 0 for others.

    asked is sequence - visual + 1: of few rows, as shapes alone tell, attention is computed a second time.
    """
    import onnx_ir as ir

    from sts_export.graphs.layers import dims
    from sts_export.graphs.survivors import ROW_LIMIT, rows_behind_pictures

    behind = rows_behind_pictures(op, inputs.text_rows, inputs.attention_mask, rows)
    weight = op.Cast(behind, to=ir.DataType.FLOAT)
    last = op.Cast(op.Equal(rows.index, rows.last), to=ir.DataType.FLOAT)
    nobody = op.Equal(op.ReduceMax(weight, rows.axis, keepdims=1), op.Constant(value_float=0.0))
    weight = op.Where(nobody, last, weight)
    order = op.Sub(op.Mul(weight, op.Constant(value_float=ROW_LIMIT)), op.Cast(rows.index, to=ir.DataType.FLOAT))
    count = op.Add(op.Sub(rows.count, dims(op, inputs.visual_embeds, 1, 2)), rows.axis)
    _, asked = op.TopK(order, count, axis=1, largest=1, sorted=1, _outputs=["asked_order", "asked_rows"])
    weight = op.GatherElements(weight, asked, axis=1)
    return asked, op.Div(weight, op.ReduceSum(weight, rows.axis, keepdims=1))
