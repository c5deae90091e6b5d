"""Stage 2 of STS: attention of the last prompt token (docs/method.md, "Stage 2").

    R(v) = mean over heads of softmax(q_last k / sqrt(d))[v]; the K' visual rows of largest R

Source: arXiv 2606.03569, equations 6 and 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sts_export.graphs.needs import NEXT_QUERY_KEY, OWN_QUERY_KEY
from sts_export.pruning.stage import Stage2

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage2Inputs

ScoreLayer = Literal["own", "next"]


@dataclass(frozen=True)
class LastToken(Stage2):
    """The visual rows that the last prompt token attends to.

    Args:
        score_layer: whose attention it is, of the ``own`` last lower layer or of the ``next`` (first upper) one.
    """

    name: ClassVar[str] = "last-token"
    summary: ClassVar[str] = "what the last prompt token attends to (STS)"
    plugin: ClassVar[str | None] = "LastTokenTopK"

    score_layer: ScoreLayer = "own"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({NEXT_QUERY_KEY if self.score_layer == "next" else OWN_QUERY_KEY})

    def build(self, op: Op, inputs: Stage2Inputs) -> tuple[ir.Value, ir.Value]:
        kept_rows, last_row = op.call(
            last_token_topk(),
            inputs.query,
            inputs.key,
            inputs.attention_mask,
            inputs.visual_mask,
            inputs.visual_embeds,
            inputs.stage2_slots,
            scale=inputs.scale,
            _outputs=["survivor_rows", "survivor_last"],
        )
        return kept_rows, last_row


STAGE = LastToken


def _last_token_body(
    op: Op,
    query: ir.Value,
    key: ir.Value,
    attention_mask: ir.Value,
    visual_mask: ir.Value,
    visual_embeds: ir.Value,
    stage2_slots: ir.Value,
) -> list[ir.Value]:
    import onnx_ir as ir

    from sts_export.graphs.functions import attribute
    from sts_export.graphs.layers import concat_dims, dims
    from sts_export.graphs.survivors import NOT_VISUAL, keep_largest, prompt_rows

    scale = attribute(op, "value_float", "scale")
    rows = prompt_rows(op, attention_mask)
    # A one-hot product picks each request's own last row without a data-dependent slice.
    one_hot = op.Cast(op.Equal(op.Unsqueeze(rows.index, op.Constant(value_ints=[0])), rows.last), to=ir.DataType.FLOAT)
    one_hot = op.Unsqueeze(one_hot, op.Constant(value_ints=[1, 2]))  # [batch, 1, 1, rows]
    query_last = op.MatMul(one_hot, op.Cast(query, to=ir.DataType.FLOAT))  # [batch, heads, 1, head_dim]
    shape = concat_dims(op, dims(op, key, 0, 2), -1, dims(op, key, 3, 4))
    grouped = op.Reshape(query_last, shape)  # [batch, kv_heads, group, head_dim]
    scores = op.MatMul(grouped, op.Transpose(op.Cast(key, to=ir.DataType.FLOAT), perm=[0, 1, 3, 2]))
    allowed = op.And(op.LessOrEqual(rows.index, rows.last), op.Cast(attention_mask, to=ir.DataType.BOOL))  # [batch, rows]
    allowed = op.Unsqueeze(allowed, op.Constant(value_ints=[1, 2]))
    scores = op.Where(allowed, op.Mul(scores, scale), op.Constant(value_float=NOT_VISUAL))
    attention = op.ReduceMean(op.Softmax(scores, axis=-1), op.Constant(value_ints=[1, 2]), keepdims=0)  # [batch, rows]
    # As the kernel in the place of this function has it.
    return list(keep_largest(op, attention, rows, visual_mask, visual_embeds, stage2_slots, ends_in_text=True))


def last_token_topk() -> ir.Function:
    """``sts::LastTokenTopK(query, key, attention_mask, visual_mask, visual_embeds, stage2_slots) -> kept_rows, last_row``.

    Stage 2, equations 6 and 7: the last real token's attention over the rows of this call, fp32 softmax per head, mean over
    heads, then the K' largest visual rows; text rows (and padding) always survive.

    Attributes:
        scale: float, 1 / sqrt(head_dim)
    Inputs:
        query: [batch, heads, rows, head_dim], rotated
        key: [batch, kv_heads, rows, head_dim], rotated
        attention_mask: [batch, rows] int64, 1 for real tokens
        visual_mask: [batch, rows] bool, visual rows
        visual_embeds: [batch, visual, hidden]; only its length is read
        stage2_slots: [visual_keep] int64; only its length is read, K' <= visual
    Outputs:
        kept_rows: [batch, rows - visual + visual_keep] int64, ascending; ties go to the lowest row
        last_row: [batch] int64, where the last real token stands among them
    """
    import onnx_ir as ir

    from sts_export.graphs.functions import function, tensor

    inputs = [
        tensor("query"),
        tensor("key"),
        tensor("attention_mask", ir.DataType.INT64, "batch", "rows"),
        tensor("visual_mask", ir.DataType.BOOL, "batch", "rows"),
        tensor("visual_embeds"),
        tensor("stage2_slots", ir.DataType.INT64, "visual_keep"),
    ]
    return function("LastTokenTopK", _last_token_body, inputs, {"scale": ir.AttributeType.FLOAT})
