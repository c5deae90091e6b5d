"""Attention as ONNX Runtime's providers run it fastest.

A bundle's graphs say TensorScatter and Attention over the whole cache under a mask, which every engine takes.  ONNX Runtime
then reads all rows of the cache for every token, used or not, and on the CPU a vision tower's full attention becomes a matrix
of patches x patches for every head.  Its own operators do better: GroupQueryAttention writes the new rows and reads the used
ones only, MultiHeadAttention works in tiles.  Both take heads side by side, [batch, rows, heads * head_dim], as projections
give them; so rotary embeddings are computed in that form, too, and no layer transposes anything.

Which operator a provider has, and for which types (ONNX Runtime 1.31.1):

    GroupQueryAttention  CPU float32, float16; CUDA float16, bfloat16 (FlashAttention, else memory-efficient attention).  A
                         float32 one would run on the CPU, all caches copied there and back, so TensorScatter and Attention
                         stay: CUDA has both, the latter with grouped heads as plain products.
    MultiHeadAttention   put in on the CPU only.
    Attention            on CUDA, without a mask, takes FlashAttention already (float16, bfloat16), or memory-efficient
                         attention (float32, and windows under a mask); heads are given side by side where they were before.

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

# Device -> operator -> names of the onnx_ir types in which it is better there than Attention with split heads.
_FUSED: Mapping[Device, Mapping[str, frozenset[str]]] = {
    "cpu": {"GroupQueryAttention": frozenset({"FLOAT", "FLOAT16"}), "MultiHeadAttention": frozenset({"FLOAT", "FLOAT16"})},
    "cuda": {
        "GroupQueryAttention": frozenset({"FLOAT16", "BFLOAT16"}),
        "Attention": frozenset({"FLOAT", "FLOAT16", "BFLOAT16"}),
    },
}


def fuse_attention(graph: ir.Graph, num_heads: int, device: Device) -> bool:
    """Replace attention layers where the device has something better.

    What only they used stays behind without users.

    Args:
        num_heads: query heads of every layer.

    Returns:
        Whether there was one to replace.
    """
    from sts_export.lowering.heads import was_side_by_side
    from sts_export.lowering.rewriter import Rewriter

    layers = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    dtype = _dtype(graph)
    chosen = {operator for operator, types in _FUSED[device].items() if dtype in types}
    rewriter = Rewriter(graph, named=False)
    replaced = False
    for node in layers:
        if "GroupQueryAttention" in chosen and _is_cached(node):
            _use_group_query_attention(rewriter, node, num_heads)
        elif "MultiHeadAttention" in chosen and _is_plain(node):
            _use_multi_head_attention(rewriter, node, num_heads)
        elif "Attention" in chosen and _is_plain(node) and all(was_side_by_side(tensor) for tensor in node.inputs[:3]):
            _give_heads_side_by_side(rewriter, node, num_heads)
        else:
            continue
        replaced = True
    return replaced


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


def _lengths(rewriter: Rewriter, new_rows: ir.Value, write_index: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """For all layers: index of the last row of each request, [batch] int32, and the longest length, [] int32.

    All rows of a call count, padding on the right too: no row attends to a later one.

    Args:
        new_rows: [batch, rows, ...]
    """
    op, int32 = rewriter.op, ELEMENT_TYPES["int32"].onnx

    def last() -> ir.Value:
        return op("Sub", op("Add", write_index, op("Shape", new_rows, start=1, end=2)), rewriter.int64([1]))

    def longest() -> ir.Value:
        reduced = op("ReduceMax", rewriter.shared("last rows", last), rewriter.int64([0]), keepdims=0)
        return op("Cast", op("Add", reduced, rewriter.int64(1)), to=int32)

    return (
        rewriter.shared("lengths", lambda: op("Cast", rewriter.shared("last rows", last), to=int32)),
        rewriter.shared("longest length", longest),
    )


def _use_group_query_attention(rewriter: Rewriter, attention: ir.Node, num_heads: int) -> None:
    """One layer: the new rows go in as [batch, rows, heads * head_dim], the caches are written in place as before."""
    from sts_export.lowering.heads import side_by_side

    query, scale = attention.inputs[0], attention.attributes["scale"].as_float()
    key_scatter, value_scatter = attention.inputs[1].producer(), attention.inputs[2].producer()
    assert query is not None and key_scatter is not None and value_scatter is not None
    cache = key_scatter.inputs[0]
    assert cache is not None and cache.shape is not None
    kv_heads = int(cache.shape[1])
    rewriter.start(attention)
    rotated = [
        side_by_side(rewriter, tensor, heads)
        for tensor, heads in ((query, num_heads), (key_scatter.inputs[1], kv_heads), (value_scatter.inputs[1], kv_heads))
    ]
    mixed, *caches = rewriter.ops(
        "GroupQueryAttention",
        *rotated,
        cache,
        value_scatter.inputs[0],
        *_lengths(rewriter, rotated[0], key_scatter.inputs[2]),
        outputs=3,
        domain=CONTRIB,
        num_heads=num_heads,
        kv_num_heads=kv_heads,
        scale=scale,
    )
    _use_mixed(rewriter, attention, mixed)
    for scatter, output in zip((key_scatter, value_scatter), caches, strict=True):
        rewriter.take_place(scatter.outputs[0], output)


def _use_mixed(rewriter: Rewriter, attention: ir.Node, mixed: ir.Value) -> None:
    """[batch, rows, heads * head_dim] instead of the attention's output, which is transposed and merged to that."""
    (transpose,) = attention.outputs[0].consumers()
    (merge,) = transpose.outputs[0].consumers()
    merge.replace_input_with(0, mixed)  # a reshape to [batch * rows, heads * head_dim]
    rewriter.graph.remove([transpose, attention], safe=True)


def _give_heads_side_by_side(rewriter: Rewriter, attention: ir.Node, num_heads: int) -> None:
    from sts_export.lowering.heads import side_by_side

    rewriter.start(attention)
    flat = [side_by_side(rewriter, tensor, num_heads) for tensor in attention.inputs[:3]]
    scale = attention.attributes["scale"].as_float()
    mixed = rewriter.op("Attention", *flat, q_num_heads=num_heads, kv_num_heads=num_heads, scale=scale)
    _use_mixed(rewriter, attention, mixed)


def _use_multi_head_attention(rewriter: Rewriter, attention: ir.Node, num_heads: int) -> None:
    from sts_export.lowering.heads import side_by_side

    rewriter.start(attention)
    flat = [side_by_side(rewriter, tensor, num_heads) for tensor in attention.inputs[:3]]
    scale = attention.attributes["scale"].as_float()
    _use_mixed(rewriter, attention, rewriter.op("MultiHeadAttention", *flat, domain=CONTRIB, num_heads=num_heads, scale=scale))
