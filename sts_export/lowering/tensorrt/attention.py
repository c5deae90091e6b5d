"""Attention and RotaryEmbedding in basic operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from sts_export.lowering.rewriter import Rewriter, attribute
from sts_export.lowering.tensorrt.checks import dtype_of, fixed, plain, refuse, required

# Below any score, and finite: a row without any key becomes the mean of the values, not NaN.
MASKED = -1e30


def lower_attention(rewriter: Rewriter, node: ir.Node, query_heads: int) -> None:
    """``softmax(mask(scale * Q K^T)) V`` in the form in which TensorRT looks for fused attention.

    query [batch, heads, rows, head_dim]; key, value [batch, kv_heads, columns, head_dim]; mask [batch, 1, rows, columns] bool
    or none -> [batch, heads, rows, head_dim].

    The scale goes onto the query, before the first product, whose result could overflow in float16 ("TensorRT requires Q or K
    to be multiplied with attention scale ... for numeric stability and performance reasons").  The multiplication is in
    float32, for in bfloat16 the scale itself would be off by up to 0.2 %.  The softmax is in float32.

    With fewer kv heads than heads, the heads of a group are stacked as rows: [batch, kv_heads, group * rows, head_dim], which
    moves no data, repeats no keys (in decode they are all that is read), and leaves the four-dimensional pattern of plain
    multi-head attention.  The mask is repeated for the group once for all layers.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html
    """
    plain(node, is_causal=0, softcap=0.0, qk_matmul_output_mode=0)
    if len(node.outputs) > 1 or any(value is not None for value in node.inputs[4:]):
        raise refuse(node, "a cache of its own")
    query, key, value = (required(node, index) for index in range(3))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and (mask.dtype != ir.DataType.BOOL or fixed(node, mask, 1) != 1):
        raise refuse(node, "a mask that is not bool or differs between heads")
    dtype, kv_heads = dtype_of(node, query), fixed(node, key, 1)
    scale = attribute(node, "scale", None) or 1 / math.sqrt(fixed(node, key, 3))
    group, rest = divmod(query_heads, kv_heads)
    if rest:
        raise refuse(node, f"{query_heads} heads over {kv_heads}")

    rewriter.start(node)
    query = _in_float32(rewriter, query, dtype, lambda x: rewriter.op("Mul", x, rewriter.float32(scale)))
    if group > 1:
        query = rewriter.op("Reshape", query, rewriter.int64([0, kv_heads, -1, fixed(node, key, 3)]))
        if mask is not None:
            mask = _for_group(rewriter, mask, group)

    def probabilities(scores: ir.Value) -> ir.Value:
        if mask is not None:
            scores = rewriter.op("Where", mask, scores, rewriter.float32(MASKED))
        return rewriter.op("Softmax", scores, axis=-1)

    scores = rewriter.op("MatMul", query, rewriter.op("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = rewriter.op("MatMul", _in_float32(rewriter, scores, dtype, probabilities), value)
    if group > 1:
        mixed = rewriter.op("Reshape", mixed, rewriter.int64([0, query_heads, -1, fixed(node, value, 3)]))
    rewriter.replace(mixed)


def _for_group(rewriter: Rewriter, mask: ir.Value, group: int) -> ir.Value:
    """[batch, 1, rows, columns] -> [batch, 1, group * rows, columns]"""
    return rewriter.shared(("mask", mask, group), lambda: rewriter.op("Tile", mask, rewriter.int64([1, 1, group, 1])))


def _in_float32(rewriter: Rewriter, value: ir.Value, dtype: ir.DataType, function: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """function(value), computed in float32 and rounded once."""
    if dtype == ir.DataType.FLOAT:
        return function(value)
    return rewriter.cast(function(rewriter.cast(value, ir.DataType.FLOAT)), dtype)


def lower_rotary_embedding(rewriter: Rewriter, node: ir.Node) -> None:
    """The two halves of every head turn against each other.

    x [batch, heads, rows, head_dim]; cos, sin [positions, head_dim / 2] with position_ids [batch, rows], or looked up already
    [batch, rows, head_dim / 2].  The look-up is shared by all layers.
    """
    plain(node, interleaved=0, rotary_embedding_dim=0, num_heads=0)
    x, cos, sin = (required(node, index) for index in range(3))
    position_ids = node.inputs[3] if len(node.inputs) > 3 else None
    if x.shape is None or len(x.shape) != 4:
        raise refuse(node, "an input that is not [batch, heads, rows, head_dim]")
    rewriter.start(node)
    cos, sin = (_by_row(rewriter, table, position_ids) for table in (cos, sin))
    first, second = rewriter.ops("Split", x, outputs=2, axis=-1, num_outputs=2)

    def times(left: ir.Value, right: ir.Value) -> ir.Value:
        return rewriter.op("Mul", left, right)

    turned = [
        rewriter.op("Sub", times(first, cos), times(second, sin)),
        rewriter.op("Add", times(second, cos), times(first, sin)),
    ]
    rewriter.replace(rewriter.op("Concat", *turned, axis=-1))


def _by_row(rewriter: Rewriter, table: ir.Value, position_ids: ir.Value | None) -> ir.Value:
    """[batch, 1, rows, head_dim / 2]"""

    def look_up() -> ir.Value:
        rows = table if position_ids is None else rewriter.op("Gather", table, position_ids, axis=0)
        return rewriter.op("Unsqueeze", rows, rewriter.int64([1]))

    return rewriter.shared(("rotary", table, position_ids), look_up)
