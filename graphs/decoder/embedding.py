"""What the decoder's first part begins with: token embeddings, with visual rows and newlines in their places.

Checkpoint names: ``embed_tokens.weight`` under the decoder's prefix, and ``image_newline``.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import NEWLINE_ROW
from sts_export.graphs.decoder.visual_rows import VisualRows
from sts_export.graphs.layers import DTYPES, Op, dims


class Embedding(nn.Module):
    """weight: [vocab, width]."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter([config.vocab_size, config.hidden_size], DTYPES[dtype])

    def forward(self, op: Op, ids: ir.Value) -> ir.Value:
        return op.Gather(self.weight, ids)


class Newline(nn.Module):
    """The learned row that ends every row of a tiled picture.  image_newline: [width]."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.image_newline = nn.Parameter([config.hidden_size], DTYPES[dtype])

    def forward(self, op: Op) -> ir.Value:
        return op.Identity(self.image_newline)


def embed_prompt(
    op: Op, embed_tokens: Embedding, input_ids: ir.Value, visual: VisualRows, newline: ir.Value | None
) -> ir.Value:
    """[batch * rows, width]; the i-th visual row of a request takes the i-th row of its visual_embeds.

    Args:
        input_ids: [batch, rows].
        newline: [width]; None for a family without.
    """
    x = embed_tokens(op, op.Max(input_ids, op.Constant(value_int=0)))
    if newline is not None:
        here = op.Equal(input_ids, op.Constant(value_int=NEWLINE_ROW))
        x = op.Where(op.Unsqueeze(here, op.Constant(value_ints=[2])), newline, x)
    rank = op.CumSum(op.Cast(visual.mask, to=ir.DataType.INT64), op.Constant(value_int=1))
    last = op.Sub(dims(op, visual.states, 1, 2), op.Constant(value_int=1))
    rank = op.Min(op.Max(op.Sub(rank, op.Constant(value_int=1)), op.Constant(value_int=0)), last)
    states = op.GatherND(visual.states, op.Unsqueeze(rank, op.Constant(value_ints=[2])), batch_dims=1)
    merged = op.Where(op.Unsqueeze(visual.mask, op.Constant(value_ints=[2])), states, x)
    return op.Reshape(merged, op.Constant(value_ints=[-1, int(embed_tokens.weight.shape[1])]))
