"""A bundle's graph as ONNX Runtime runs it fastest.

It is rewritten when a session is made; the bundle's files stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sts_export.lowering.onnxruntime_attention import CONTRIB, Device, fuse_attention
from sts_export.lowering.onnxruntime_norms import fuse_norms
from sts_export.lowering.onnxruntime_stage1 import choose_stage1_by_size

if TYPE_CHECKING:
    import onnx_ir as ir


def for_onnxruntime(
    graph: bytes, num_heads: int, device: Device, float32_inputs: Collection[str] = (), *, operators: bool = False
) -> bytes:
    """The serialized model with attention, norms and stage 1 that fit the device, and without what nothing uses any more.

    Args:
        graph: a serialized model; returned as it is where nothing has to change.
        num_heads: query heads of every layer.
        float32_inputs: names of inputs that are to be taken in float32 and cast by the graph.
        operators: the session has kernels for the pruning stages.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.from_proto(onnx.load_from_string(graph))
    changed = [fuse_attention(model.graph, num_heads, device), fuse_norms(model.graph)]
    if device == "cuda" and not operators:
        changed.append(choose_stage1_by_size(model))
    if not any(changed) and not float32_inputs:
        return graph
    if any(node.domain == CONTRIB for node in model.graph):
        model.graph.opset_imports[CONTRIB] = 1
    for value in [value for value in model.graph.inputs if value.name in float32_inputs]:
        _take_float32(model.graph, value)
    RemoveUnusedNodesPass()(model)  # what only the old attention used, its mask among it
    rewritten: bytes = ir.to_proto(model).SerializeToString()
    return rewritten


def _take_float32(graph: ir.Graph, value: ir.Value) -> None:
    """The input keeps its name and shape; its users get it in the type that it had."""
    import onnx_ir as ir

    assert value.dtype is not None
    cast = ir.node("Cast", [value], {"to": value.dtype})
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    cast.replace_input_with(0, value)
    cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
    value.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(graph[0], cast)
