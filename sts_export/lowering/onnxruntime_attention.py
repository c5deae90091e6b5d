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

if TYPE_CHECKING:
    import onnx_ir as ir

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

    model = ir.from_proto(onnx.load_from_string(graph))
    layers = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
    dtype = _dtype(model.graph)
    chosen = {operator for operator, types in _FUSED[device].items() if dtype in types}
    cached = [node for node in layers if "GroupQueryAttention" in chosen and _is_cached(node)]
    lengths = _lengths(model.graph, cached[0]) if cached else None
    replaced = 0
    for node in layers:
        if lengths is not None and node in cached:
            _use_group_query_attention(model.graph, node, lengths, num_heads)
        elif "MultiHeadAttention" in chosen and _is_plain(node):
            _use_multi_head_attention(model.graph, node, num_heads)
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


def _lengths(graph: ir.Graph, first: ir.Node) -> tuple[ir.Value, ir.Value]:
    """For all layers: index of the last row of each request, [batch] int32, and the longest length, [] int32.

    All rows of a call count, padding on the right too: no row attends to a later one.
    """
    import onnx_ir as ir

    key_scatter = first.inputs[1].producer()
    assert key_scatter is not None
    write_index, rows_of = key_scatter.inputs[2], key_scatter.inputs[1]
    rows = _insert(graph, key_scatter, "Shape", [rows_of], [ir.AttrInt64("start", 2), ir.AttrInt64("end", 3)])
    one = _constant(graph, key_scatter, [1])
    last = _insert(graph, key_scatter, "Sub", [_insert(graph, key_scatter, "Add", [write_index, rows]), one])
    longest = _insert(
        graph, key_scatter, "ReduceMax", [last, _constant(graph, key_scatter, [0])], [ir.AttrInt64("keepdims", 0)]
    )
    total = _insert(graph, key_scatter, "Add", [longest, _insert(graph, key_scatter, "Squeeze", [one])])
    to_int32 = [ir.AttrInt64("to", int(ir.DataType.INT32))]
    return _insert(graph, key_scatter, "Cast", [last], to_int32), _insert(graph, key_scatter, "Cast", [total], to_int32)


def _use_group_query_attention(graph: ir.Graph, attention: ir.Node, lengths: tuple[ir.Value, ir.Value], num_heads: int) -> None:
    """One layer: the new rows go in as [batch, rows, heads * head_dim], the caches are written in place as before."""
    import onnx_ir as ir

    scatters = [attention.inputs[1].producer(), attention.inputs[2].producer()]
    query, scale = attention.inputs[0], attention.attributes["scale"].as_float()
    key_scatter, value_scatter = scatters
    assert query is not None and key_scatter is not None and value_scatter is not None
    key, value = key_scatter.inputs[1], value_scatter.inputs[1]
    cache = key_scatter.inputs[0]
    assert cache is not None and cache.shape is not None
    kv_heads = int(cache.shape[1])
    flat = [_rows_first(graph, attention, tensor) for tensor in (query, key, value)]
    fused = ir.Node(
        CONTRIB,
        "GroupQueryAttention",
        [*flat, key_scatter.inputs[0], value_scatter.inputs[0], *lengths],
        [ir.AttrInt64("num_heads", num_heads), ir.AttrInt64("kv_num_heads", kv_heads), ir.AttrFloat32("scale", scale)],
        num_outputs=3,
    )
    graph.insert_before(attention, fused)
    (transpose,) = attention.outputs[0].consumers()
    (merge,) = transpose.outputs[0].consumers()
    merge.replace_input_with(0, fused.outputs[0])  # a reshape to [batch * rows, heads * head_dim]
    graph.remove([transpose, attention], safe=True)
    for scatter, output in zip((key_scatter, value_scatter), fused.outputs[1:], strict=True):
        old = scatter.outputs[0]
        output.shape, output.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        graph.remove(scatter, safe=True)
        output.name = name


def _use_multi_head_attention(graph: ir.Graph, attention: ir.Node, num_heads: int) -> None:
    """[batch, heads, rows, head_dim] in and out, as before; the transpositions cancel with those of the graph."""
    import onnx_ir as ir

    flat = [_rows_first(graph, attention, tensor) for tensor in attention.inputs[:3]]
    scale = attention.attributes["scale"].as_float()
    fused = ir.Node(CONTRIB, "MultiHeadAttention", flat, [ir.AttrInt64("num_heads", num_heads), ir.AttrFloat32("scale", scale)])
    graph.insert_before(attention, fused)
    split = _insert(graph, attention, "Reshape", [fused.outputs[0], _constant(graph, attention, [0, 0, num_heads, -1])])
    turned = _insert(graph, attention, "Transpose", [split], [ir.AttrInt64s("perm", [0, 2, 1, 3])])
    ir.convenience.replace_all_uses_with(attention.outputs[0], turned)
    graph.remove(attention, safe=True)


def _rows_first(graph: ir.Graph, before: ir.Node, tensor: ir.Value | None) -> ir.Value:
    """[batch, heads, rows, head_dim] -> [batch, rows, heads * head_dim]"""
    import onnx_ir as ir

    turned = _insert(graph, before, "Transpose", [tensor], [ir.AttrInt64s("perm", [0, 2, 1, 3])])
    return _insert(graph, before, "Reshape", [turned, _constant(graph, before, [0, 0, -1])])


def _constant(graph: ir.Graph, before: ir.Node, numbers: list[int]) -> ir.Value:
    import onnx_ir as ir

    return _insert(graph, before, "Constant", [], [ir.AttrInt64s("value_ints", numbers)])


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    operator: str,
    inputs: list[ir.Value | None],
    attributes: list[ir.Attr] | None = None,
) -> ir.Value:
    import onnx_ir as ir

    node = ir.Node("", operator, inputs, attributes or [])
    graph.insert_before(before, node)
    return node.outputs[0]
