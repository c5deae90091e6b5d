"""Decoder layers 0..L-1 and stage 2.

    input_ids, visual_embeds -> merged embeddings -> layers 0..L-1 -> sts::LastTokenTopK -> surviving rows

One graph serves prefill and decode: in decode ``visual_embeds`` is one dummy row, no token is an image token, and every
row survives.  Checkpoint names (under ``language_model.model``): ``embed_tokens.weight``, ``layers.i``.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import VISUAL_ROW, llm_lower_contract
from sts_export.graphs.decoder import DecoderLayer, LayerContext, QueryKey, layer_context
from sts_export.graphs.layers import DTYPES, Op, dims
from sts_export.graphs.model import build_model
from sts_export.graphs.selection import last_token_topk


class Embedding(nn.Module):
    """weight: [vocab, width]."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter([config.vocab_size, config.hidden_size], DTYPES[dtype])

    def forward(self, op: Op, ids: ir.Value) -> ir.Value:
        return op.Gather(self.weight, ids)


class LowerDecoder(nn.Module):
    """Embedding and layers 0..L-1, and the scoring projections of layer L where those are asked for."""

    def __init__(self, config: DecoderConfig, prune_layer: int, dtype: Dtype, *, score_layer: str, name: str) -> None:
        super().__init__(name)
        self.embed_tokens = Embedding(config, dtype)
        layers: list[nn.Module] = [DecoderLayer(config, dtype) for _ in range(prune_layer)]
        self.score_next = score_layer == "next"
        if self.score_next:
            layers.append(QueryKey(config, dtype))
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        op: Op,
        input_ids: ir.Value,
        visual_mask: ir.Value,
        visual_embeds: ir.Value,
        context: LayerContext,
        caches: list[ir.Value],
    ) -> tuple[ir.Value, list[ir.Value], ir.Value, ir.Value]:
        """Returns hidden states [batch * rows, width], updated caches, and the scoring query and key."""
        x = self._embed(op, input_ids, visual_mask, visual_embeds)
        updated: list[ir.Value] = []
        query = key = x
        for index, layer in enumerate(self.layers):
            if isinstance(layer, QueryKey):
                query, key = layer(op, x, context)
            else:
                x, key_cache, value_cache, query, key = layer(op, x, caches[2 * index], caches[2 * index + 1], context)
                updated += [key_cache, value_cache]
        return x, updated, query, key

    def _embed(self, op: Op, input_ids: ir.Value, visual_mask: ir.Value, visual_embeds: ir.Value) -> ir.Value:
        """The i-th visual row of a request takes the i-th row of its visual_embeds."""
        text = self.embed_tokens(op, op.Where(visual_mask, op.Constant(value_int=0), input_ids))
        rank = op.CumSum(op.Cast(visual_mask, to=ir.DataType.INT64), op.Constant(value_int=1))
        last = op.Sub(dims(op, visual_embeds, 1, 2), op.Constant(value_int=1))
        rank = op.Min(op.Max(op.Sub(rank, op.Constant(value_int=1)), op.Constant(value_int=0)), last)
        visual = op.GatherND(visual_embeds, op.Unsqueeze(rank, op.Constant(value_ints=[2])), batch_dims=1)
        merged = op.Where(op.Unsqueeze(visual_mask, op.Constant(value_ints=[2])), visual, text)
        width = self.embed_tokens.weight.shape[1]
        return op.Reshape(merged, op.Constant(value_ints=[-1, int(width)]))


def llm_lower(
    config: DecoderConfig,
    dtype: Dtype,
    *,
    prefix: str,
    prune_layer: int,
    keep: int,
    capacity: int,
    score_layer: str,
) -> ir.Model:
    """The llm_lower graph: L = ``prune_layer``, K' = ``keep``; parameters are named ``prefix`` + Llama's own names."""
    decoder = LowerDecoder(config, prune_layer, dtype, score_layer=score_layer, name=prefix)
    contract = llm_lower_contract(config, prune_layer, capacity, dtype)

    def forward(
        op: Op,
        input_ids: ir.Value,
        attention_mask: ir.Value,
        visual_embeds: ir.Value,
        position_ids: ir.Value,
        write_index: ir.Value,
        *caches: ir.Value,
    ) -> list[ir.Value]:
        context = layer_context(
            op,
            config,
            dtype,
            rows_of=input_ids,
            position_ids=position_ids,
            write_index=write_index,
            capacity=capacity,
            positions=capacity,
        )
        visual_mask = op.Equal(input_ids, op.Constant(value_int=VISUAL_ROW))
        x, updated, query, key = decoder(op, input_ids, visual_mask, visual_embeds, context, list(caches))
        kept_rows, last_row = op.call(
            last_token_topk(),
            query,
            key,
            attention_mask,
            visual_mask,
            visual_embeds,
            keep=keep,
            scale=1 / math.sqrt(config.head_dim),
            _outputs=["survivor_rows", "survivor_last"],
        )
        kept_rows.type, kept_rows.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["batch", "survivors"])
        rows = op.Reshape(x, op.Concat(context.batch_rows, op.Constant(value_ints=[config.hidden_size]), axis=0))
        hidden = op.GatherND(rows, op.Unsqueeze(kept_rows, op.Constant(value_ints=[2])), batch_dims=1)
        return [hidden, kept_rows, op.GatherElements(position_ids, kept_rows, axis=1), last_row, *updated]

    return build_model(contract, forward)
