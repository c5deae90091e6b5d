"""Decoder layers 0..L-1 and stage 2.

    input_ids, visual_embeds -> merged embeddings -> layers 0..L-1 -> stage 2 -> surviving rows

One graph serves prefill and decode: in decode ``visual_embeds`` is one dummy row, no token is an image token, and every
row survives.  Checkpoint names (under the decoder's prefix): ``embed_tokens.weight``, ``layers.i``; and ``image_newline``.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW, llm_lower_contract
from sts_export.graphs.decoder import DecoderLayer, LayerContext, QueryKey, layer_context
from sts_export.graphs.layers import DTYPES, Op, dims
from sts_export.graphs.model import build_model
from sts_export.graphs.stages import Stage2Builder, Stage2Inputs


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


class LowerDecoder(nn.Module):
    """Embedding and layers 0..L-1, and the scoring projections of layer L where those are asked for."""

    def __init__(self, config: DecoderConfig, prune_layer: int, dtype: Dtype, *, score_next: bool, name: str) -> None:
        super().__init__(name)
        self.embed_tokens = Embedding(config, dtype)
        layers: list[nn.Module] = [DecoderLayer(config, dtype) for _ in range(prune_layer)]
        if score_next:
            layers.append(QueryKey(config, dtype))
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        op: Op,
        input_ids: ir.Value,
        visual_mask: ir.Value,
        visual_embeds: ir.Value,
        newline: ir.Value | None,
        context: LayerContext,
        caches: list[ir.Value],
    ) -> tuple[ir.Value, list[ir.Value], ir.Value, ir.Value]:
        """Returns hidden states [batch * rows, width], updated caches, and the scoring query and key."""
        x = self._embed(op, input_ids, visual_mask, visual_embeds, newline)
        updated: list[ir.Value] = []
        query = key = x
        for index, layer in enumerate(self.layers):
            if isinstance(layer, QueryKey):
                query, key = layer(op, x, context)
            else:
                x, key_cache, value_cache, query, key = layer(op, x, caches[2 * index], caches[2 * index + 1], context)
                updated += [key_cache, value_cache]
        return x, updated, query, key

    def _embed(
        self, op: Op, input_ids: ir.Value, visual_mask: ir.Value, visual_embeds: ir.Value, newline: ir.Value | None
    ) -> ir.Value:
        """[batch * rows, width]; the i-th visual row of a request takes the i-th row of its visual_embeds."""
        x = self.embed_tokens(op, op.Max(input_ids, op.Constant(value_int=0)))
        if newline is not None:
            here = op.Equal(input_ids, op.Constant(value_int=NEWLINE_ROW))
            x = op.Where(op.Unsqueeze(here, op.Constant(value_ints=[2])), newline, x)
        rank = op.CumSum(op.Cast(visual_mask, to=ir.DataType.INT64), op.Constant(value_int=1))
        last = op.Sub(dims(op, visual_embeds, 1, 2), op.Constant(value_int=1))
        rank = op.Min(op.Max(op.Sub(rank, op.Constant(value_int=1)), op.Constant(value_int=0)), last)
        visual = op.GatherND(visual_embeds, op.Unsqueeze(rank, op.Constant(value_ints=[2])), batch_dims=1)
        merged = op.Where(op.Unsqueeze(visual_mask, op.Constant(value_ints=[2])), visual, x)
        width = self.embed_tokens.weight.shape[1]
        return op.Reshape(merged, op.Constant(value_ints=[-1, int(width)]))


def llm_lower(
    config: DecoderConfig,
    dtype: Dtype,
    *,
    prefix: str,
    prune_layer: int,
    capacity: int,
    positions: int,
    stage2: Stage2Builder,
    score_next: bool = False,
    with_newline: bool = False,
) -> ir.Model:
    """The llm_lower graph.

    Args:
        prefix: parameters are named ``prefix`` + Llama's own names.
        prune_layer: L.
        capacity: rows of the KV caches.
        positions: the largest rotary position plus one.
        stage2: adds the nodes that choose the surviving rows.
        score_next: stage 2 is given query and key of layer L instead of those of layer L-1.
        with_newline: the family has a learned newline row, ``image_newline``.
    """
    decoder = LowerDecoder(config, prune_layer, dtype, score_next=score_next, name=prefix)
    newline = Newline(config, dtype) if with_newline else None
    contract = llm_lower_contract(config, prune_layer, capacity, dtype)

    def forward(
        op: Op,
        input_ids: ir.Value,
        attention_mask: ir.Value,
        visual_embeds: ir.Value,
        stage2_slots: ir.Value,
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
            positions=positions,
        )
        visual_mask = op.Equal(input_ids, op.Constant(value_int=VISUAL_ROW))
        learned = None if newline is None else newline(op)
        x, updated, query, key = decoder(op, input_ids, visual_mask, visual_embeds, learned, context, list(caches))
        scale = 1 / math.sqrt(config.head_dim)
        kept_rows, last_row = stage2(
            op, Stage2Inputs(query, key, attention_mask, visual_mask, visual_embeds, stage2_slots, scale)
        )
        kept_rows.type, kept_rows.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["batch", "survivors"])
        rows = op.Reshape(x, op.Concat(context.batch_rows, op.Constant(value_ints=[config.hidden_size]), axis=0))
        hidden = op.GatherND(rows, op.Unsqueeze(kept_rows, op.Constant(value_ints=[2])), batch_dims=1)
        if config.mrope_section:
            by_row = op.Transpose(position_ids, perm=[0, 2, 1])
            kept_positions = op.GatherND(by_row, op.Unsqueeze(kept_rows, op.Constant(value_ints=[2])), batch_dims=1)
            kept_positions = op.Transpose(kept_positions, perm=[0, 2, 1])
        else:
            kept_positions = op.GatherElements(position_ids, kept_rows, axis=1)
        return [hidden, kept_rows, kept_positions, last_row, *updated]

    return build_model(contract, forward)
