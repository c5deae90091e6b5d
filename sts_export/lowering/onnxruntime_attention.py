"""Attention as ONNX Runtime's providers run it fastest.

A bundle's graphs say TensorScatter and Attention over the whole cache under a mask, which every engine takes.  ONNX Runtime
then reads all rows of the cache for every token, used or not, and on the CPU a vision tower's full attention becomes a matrix
of patches x patches for every head.  Its own operators do better: GroupQueryAttention writes the new rows and reads the used
ones only, MultiHeadAttention works in tiles.  They are put in when a session is made; the bundle's files stay as they are.

Which operator a provider has, and for which types (ONNX Runtime 1.31.1):

    GroupQueryAttention  CPU float32, float16; CUDA float16, bfloat16 (FlashAttention, else memory-efficient attention).  A
                         float32 one would run on the CPU, all caches copied there and back, so TensorScatter and Attention
                         stay: CUDA has both, the latter with grouped heads as plain products.
    MultiHeadAttention   put in on the CPU only.  On CUDA, Attention without a mask takes FlashAttention already (float16,
                         bfloat16), or memory-efficient attention (float32, and windows under a mask).

Sources: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, and there
onnxruntime/contrib_ops/cuda/bert/group_query_attention.cc, onnxruntime/core/providers/cuda/llm/attention.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from sts_export.dtypes import ELEMENT_TYPES

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.lowering.rewriter import Rewriter

CONTRIB = "com.microsoft"
Device = Literal["cpu", "cuda"]
_HEAD_STEP = 8  # GroupQueryAttention wants head_dim to be a multiple of it

# Device -> operator -> names of the onnx_ir types in which it is better there than Attention.
_FUSED: Mapping[Device, Mapping[str, frozenset[str]]] = {
    "cpu": {"GroupQueryAttention": frozenset({"FLOAT", "FLOAT16"}), "MultiHeadAttention": frozenset({"FLOAT", "FLOAT16"})},
    "cuda": {"GroupQueryAttention": frozenset({"FLOAT16", "BFLOAT16"}), "MultiHeadAttention": frozenset()},
}


def with_fused_attention(graph: bytes, num_heads: int, device: Device) -> bytes:
    """The serialized model with its attention layers replaced where the device has something better.

    Args:
        num_heads: query heads of every layer.
    """
    import onnx
    import onnx_ir as ir

    from sts_export.lowering.rewriter import Rewriter

    model = ir.from_proto(onnx.load_from_string(graph))
    layers = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
    dtype = _dtype(model.graph)
    chosen = {operator for operator, types in _FUSED[device].items() if dtype in types}
    cached = [node for node in layers if "GroupQueryAttention" in chosen and _is_cached(node)]
    rewriter = Rewriter(model.graph, named=False)
    lengths = _lengths(rewriter, cached[0]) if cached else None
    replaced = 0
    for node in layers:
        if lengths is not None and node in cached:
            _use_group_query_attention(rewriter, node, lengths, num_heads)
        elif "MultiHeadAttention" in chosen and _is_plain(node):
            _use_multi_head_attention(rewriter, node, num_heads)
        else:
            continue
        replaced += 1
    if not replaced:
        return graph
    model.graph.opset_imports[CONTRIB] = 1
    rewritten: bytes = ir.to_proto(model).SerializeToString()
    return rewritten


def _dtype(graph: ir.Graph) -> str:
    """The type in which a graph computes: that of its floating-point inputs."""
    return next((value.dtype.name for value in graph.inputs if value.dtype is not None and value.dtype.is_floating_point()), "")


def _is_plain(node: ir.Node) -> bool:
    """Full attention without a mask, such as a vision tower's."""
    return len([value for value in node.inputs if value is not None]) == 3


def _is_cached(node: ir.Node) -> bool:
    """Attention over keys and values that TensorScatter has just written, with heads that GroupQueryAttention takes."""
    producers = [value.producer() if value is not None else None for value in node.inputs[1:3]]
    if not all(producer is not None and producer.op_type == "TensorScatter" for producer in producers):
        return False
    cache = node.inputs[1]
    return cache is not None and cache.shape is not None and int(cache.shape[3]) % _HEAD_STEP == 0


def _lengths(rewriter: Rewriter, first: ir.Node) -> tuple[ir.Value, ir.Value]:
    """For all layers: index of the last row of each request, [batch] int32, and the longest length, [] int32.

    All rows of a call count, padding on the right too: no row attends to a later one.
    """
    key_scatter = first.inputs[1].producer()
    assert key_scatter is not None
    write_index, new_keys = key_scatter.inputs[2], key_scatter.inputs[1]
    rewriter.start(key_scatter)
    op, int32 = rewriter.op, ELEMENT_TYPES["int32"].onnx
    rows = op("Shape", new_keys, start=2, end=3)
    one = op("Constant", value_ints=[1])
    last = op("Sub", op("Add", write_index, rows), one)
    longest = op("ReduceMax", last, op("Constant", value_ints=[0]), keepdims=0)
    total = op("Add", longest, op("Squeeze", one))
    return op("Cast", last, to=int32), op("Cast", total, to=int32)


def _use_group_query_attention(
    rewriter: Rewriter, attention: ir.Node, lengths: tuple[ir.Value, ir.Value], num_heads: int
) -> None:
    """One layer: the new rows go in as [batch, rows, heads * head_dim], the caches are written in place as before."""
    query, scale = attention.inputs[0], attention.attributes["scale"].as_float()
    key_scatter, value_scatter = attention.inputs[1].producer(), attention.inputs[2].producer()
    assert query is not None and key_scatter is not None and value_scatter is not None
    cache = key_scatter.inputs[0]
    assert cache is not None and cache.shape is not None
    rewriter.start(attention)
    flat = [_rows_first(rewriter, tensor) for tensor in (query, key_scatter.inputs[1], value_scatter.inputs[1])]
    mixed, *caches = rewriter.ops(
        "GroupQueryAttention",
        *flat,
        cache,
        value_scatter.inputs[0],
        *lengths,
        outputs=3,
        domain=CONTRIB,
        num_heads=num_heads,
        kv_num_heads=int(cache.shape[1]),
        scale=scale,
    )
    (transpose,) = attention.outputs[0].consumers()
    (merge,) = transpose.outputs[0].consumers()
    merge.replace_input_with(0, mixed)  # a reshape to [batch * rows, heads * head_dim]
    rewriter.graph.remove([transpose, attention], safe=True)
    for scatter, output in zip((key_scatter, value_scatter), caches, strict=True):
        rewriter.take_place(scatter.outputs[0], output)


def _use_multi_head_attention(rewriter: Rewriter, attention: ir.Node, num_heads: int) -> None:
    """[batch, heads, rows, head_dim] in and out, as before; the transpositions cancel with those of the graph."""
    rewriter.start(attention)
    op = rewriter.op
    flat = [_rows_first(rewriter, tensor) for tensor in attention.inputs[:3]]
    scale = attention.attributes["scale"].as_float()
    mixed = op("MultiHeadAttention", *flat, domain=CONTRIB, num_heads=num_heads, scale=scale)
    split = op("Reshape", mixed, op("Constant", value_ints=[0, 0, num_heads, -1]))
    rewriter.replace(op("Transpose", split, perm=[0, 2, 1, 3]), described=False)


def _rows_first(rewriter: Rewriter, tensor: ir.Value | None) -> ir.Value:
    """[batch, heads, rows, head_dim] -> [batch, rows, heads * head_dim]"""
    turned = rewriter.op("Transpose", tensor, perm=[0, 2, 1, 3])
    return rewriter.op("Reshape", turned, rewriter.op("Constant", value_ints=[0, 0, -1]))
