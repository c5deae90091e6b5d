"""Llama-style decoder layers with an in-place static KV cache.

Checkpoint names (under ``layers.i``): ``input_layernorm``, ``self_attn.{q,k,v,o}_proj``, ``post_attention_layernorm``,
``mlp.{gate,up,down}_proj``.  Source: transformers ``models/llama/modeling_llama.py``,
``models/mistral``, ``models/qwen2_5_vl``.

The cache form is the one that is right on ONNX Runtime and in TensorRT: TensorScatter writes the new rows at
``write_index``, Attention runs over the whole capacity under an explicit mask ``column <= write_index + row``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.layers import DTYPES, Linear, Op, RMSNorm, activate, concat_dims, dims
from sts_export.graphs.rotary import inverse_frequencies, rotary_tables


@dataclass(frozen=True)
class LayerContext:
    """What all layers of one graph share.

    write_index: [batch]; mask: [batch, 1, rows, capacity] bool; batch_rows: int64 [2], the sizes of batch and rows.
    cos, sin: [positions, head_dim / 2], to be looked up by position_ids [batch, rows]; or, where a row has several positions
    (M-RoPE), looked up already, [batch, rows, head_dim / 2], and position_ids is None.
    """

    position_ids: ir.Value | None
    write_index: ir.Value
    mask: ir.Value
    cos: ir.Value
    sin: ir.Value
    batch_rows: ir.Value


def layer_context(
    op: Op,
    config: DecoderConfig,
    dtype: Dtype,
    *,
    rows_of: ir.Value,
    position_ids: ir.Value,
    write_index: ir.Value,
    capacity: int,
    positions: int,
) -> LayerContext:
    """The shared context.

    Args:
        rows_of: any [batch, rows, ...] tensor.
        position_ids: [batch, rows], or [batch, 3, rows] with M-RoPE.
        positions: the largest position plus one.
    """
    batch_rows = dims(op, rows_of, 0, 2)
    row = op.Range(op.Constant(value_int=0), op.Squeeze(dims(op, rows_of, 1, 2)), op.Constant(value_int=1))
    limit = op.Add(op.Unsqueeze(write_index, op.Constant(value_ints=[1])), row)  # [batch, rows]
    column = op.Constant(value=ir.tensor(np.arange(capacity, dtype=np.int64)))
    mask = op.LessOrEqual(column, op.Unsqueeze(limit, op.Constant(value_ints=[1, 3])))
    inverse = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_factor)
    cos, sin = (
        op.initializer(ir.tensor(table.astype(DTYPES[dtype].numpy()), dtype=DTYPES[dtype]), name=f"rotary_{name}")
        for name, table in zip(("cos", "sin"), rotary_tables(inverse, positions), strict=True)
    )
    if config.mrope_section:
        cos, sin = (_by_section(op, table, position_ids, config.mrope_section) for table in (cos, sin))
        return LayerContext(None, write_index, mask, cos, sin, batch_rows)
    return LayerContext(position_ids, write_index, mask, cos, sin, batch_rows)


def _by_section(op: Op, table: ir.Value, position_ids: ir.Value, sections: tuple[int, ...]) -> ir.Value:
    """M-RoPE: the first channels turn with time, the next with the height, the last with the width.

    table: [positions, head_dim / 2]; position_ids: [batch, 3, rows] -> [batch, rows, head_dim / 2].
    Source: transformers ``models/qwen2_5_vl/modeling_qwen2_5_vl.py`` (apply_multimodal_rotary_pos_emb).
    """
    parts, start = [], 0
    for axis, width in enumerate(sections):
        channels = op.Slice(
            table, op.Constant(value_ints=[start]), op.Constant(value_ints=[start + width]), op.Constant(value_ints=[1])
        )
        parts.append(op.Gather(channels, op.Gather(position_ids, op.Constant(value_int=axis), axis=1)))
        start += width
    return op.Concat(*parts, axis=2)


class Projections(nn.Module):
    """Query and key projections of a layer, split into heads and rotated."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.config = config
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(width, config.num_heads * config.head_dim, bias=bias, dtype=dtype)
        self.k_proj = Linear(width, config.num_kv_heads * config.head_dim, bias=bias, dtype=dtype)

    def heads(self, op: Op, x: ir.Value, heads: int, context: LayerContext) -> ir.Value:
        """[batch * rows, heads * head_dim] -> [batch, heads, rows, head_dim]"""
        split = op.Reshape(x, concat_dims(op, context.batch_rows, heads, self.config.head_dim))
        return op.Transpose(split, perm=[0, 2, 1, 3])

    def rotated(self, op: Op, x: ir.Value, context: LayerContext) -> tuple[ir.Value, ir.Value]:
        """Query [batch, heads, rows, head_dim] and key [batch, kv_heads, rows, head_dim] at their positions."""
        query = self.heads(op, self.q_proj(op, x), self.config.num_heads, context)
        key = self.heads(op, self.k_proj(op, x), self.config.num_kv_heads, context)
        where = () if context.position_ids is None else (context.position_ids,)
        return (
            op.RotaryEmbedding(query, context.cos, context.sin, *where),
            op.RotaryEmbedding(key, context.cos, context.sin, *where),
        )


class QueryKeyProjections(Projections):
    """Projections alone."""

    def forward(self, op: Op, x: ir.Value, context: LayerContext) -> tuple[ir.Value, ir.Value]:
        return self.rotated(op, x, context)


class Attention(Projections):
    """Causal self-attention of new rows over the cache; MHA or GQA."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__(config, dtype)
        width = config.hidden_size
        self.v_proj = Linear(width, config.num_kv_heads * config.head_dim, bias=config.attention_bias, dtype=dtype)
        self.o_proj = Linear(config.num_heads * config.head_dim, width, bias=config.output_bias, dtype=dtype)

    def forward(
        self, op: Op, x: ir.Value, key_cache: ir.Value, value_cache: ir.Value, context: LayerContext
    ) -> tuple[ir.Value, ...]:
        """Returns output [batch * rows, width], both updated caches, and this call's query and key."""
        query, key = self.rotated(op, x, context)
        value = self.heads(op, self.v_proj(op, x), self.config.num_kv_heads, context)
        key_cache = op.TensorScatter(key_cache, key, context.write_index, axis=2)
        value_cache = op.TensorScatter(value_cache, value, context.write_index, axis=2)
        mixed = op.Attention(query, key_cache, value_cache, context.mask, scale=1 / math.sqrt(self.config.head_dim))
        merged = op.Constant(value_ints=[-1, self.config.num_heads * self.config.head_dim])
        out = self.o_proj(op, op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), merged))
        return out, key_cache, value_cache, query, key


class MLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.activation = config.activation
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias, dtype=dtype)
        self.up_proj = Linear(width, inner, bias=bias, dtype=dtype)
        self.down_proj = Linear(inner, width, bias=bias, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.down_proj(op, op.Mul(activate(op, self.gate_proj(op, x), self.activation), self.up_proj(op, x)))


class DecoderLayer(nn.Module):
    """One pre-norm layer on [batch * rows, width]."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def forward(
        self, op: Op, x: ir.Value, key_cache: ir.Value, value_cache: ir.Value, context: LayerContext
    ) -> tuple[ir.Value, ...]:
        attended, key_cache, value_cache, query, key = self.self_attn(
            op, self.input_layernorm(op, x), key_cache, value_cache, context
        )
        x = op.Add(x, attended)
        x = op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x)))
        return x, key_cache, value_cache, query, key


class QueryKey(nn.Module):
    """The norm and q/k projections of a layer, without the rest: what ``score_layer = next`` scores with."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = QueryKeyProjections(config, dtype)

    def forward(self, op: Op, x: ir.Value, context: LayerContext) -> tuple[ir.Value, ir.Value]:
        query, key = self.self_attn(op, self.input_layernorm(op, x), context)
        return query, key
