"""The rewriting of a whole model; see the package."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass

from sts_export.errors import BackendError
from sts_export.lowering.rewriter import Rewriter
from sts_export.lowering.tensorrt.attention import lower_attention, lower_rotary_embedding
from sts_export.lowering.tensorrt.basic import lower_convolution, lower_cumsum, lower_rms_normalization
from sts_export.lowering.tensorrt.cache import lower_tensor_scatter
from sts_export.lowering.tensorrt.checks import refuse
from sts_export.pruning.registry import plugin_names

# What TensorRT 10.0 says it takes, and the IR version of the first ONNX release with that opset.
BASIC_OPSET, BASIC_IR_VERSION = 20, 9
DOMAIN, PLUGIN_VERSION = "sts", "1"


def lowered(proto: onnx.ModelProto, *, basic: bool, plugins: bool) -> bytes:
    """The serialized result.

    Args:
        basic: only operators of BASIC_OPSET; function bodies go into the graph.
        plugins: calls of functions that have a plugin become plugin nodes.
    """
    heads = _query_heads(proto) if basic else {}
    model = ir.from_proto(proto)
    if plugins:
        _call_plugins(model)
    if basic:
        InlinePass()(model)
        if all(node.domain != DOMAIN for node in model.graph):
            model.opset_imports.pop(DOMAIN, None)
        _to_basic_operators(model.graph, heads)
        _lower_versions(model)
    result: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return result


def _call_plugins(model: ir.Model) -> None:
    """Functions that the plugin library has no plugin for keep their bodies.

    The parser looks up the node's operator in the namespace and version of its attributes.

    Source: FallbackPluginImporter in onnxOpImporters.cpp.
    """
    replaced = [key for key in model.functions if key[0] == DOMAIN and key[1] in plugin_names()]
    for key in replaced:
        del model.functions[key]
    for node in model.graph:
        if (node.domain, node.op_type, node.overload) in replaced:
            node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
            node.attributes.add(ir.AttrString("plugin_version", PLUGIN_VERSION))


def _query_heads(proto: onnx.ModelProto) -> dict[str, int]:
    """Heads of the query of every Attention, by the query's name.

    In the decoder a shape is put together at run time, and only inference with data propagation finds the heads in it.
    """
    queries = [node.input[0] for node in proto.graph.node if node.op_type == "Attention" and not node.domain]
    if not queries:
        return {}
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    known = [*inferred.graph.input, *inferred.graph.value_info]
    shapes = {value.name: value.type.tensor_type.shape.dim for value in known}
    return {name: shapes[name][1].dim_value for name in queries if name in shapes and len(shapes[name]) == 4}


def _to_basic_operators(graph: ir.Graph, heads: dict[str, int]) -> None:
    rewriter = Rewriter(graph, named=True)
    for node in list(graph):
        if node.domain:
            continue
        if node.op_type == "Attention":
            query = node.inputs[0]
            found = heads.get(query.name, 0) if query is not None and query.name is not None else 0
            if not found:
                raise refuse(node, "an unknown number of heads")
            lower_attention(rewriter, node, found)
        elif node.op_type == "RotaryEmbedding":
            lower_rotary_embedding(rewriter, node)
        elif node.op_type == "TensorScatter":
            lower_tensor_scatter(rewriter, node)
        elif node.op_type == "RMSNormalization":
            lower_rms_normalization(rewriter, node)
        elif node.op_type == "CumSum":
            lower_cumsum(rewriter, node)
        elif node.op_type == "Conv":
            lower_convolution(rewriter, node)


def _lower_versions(model: ir.Model) -> None:
    """Declare the older opset, after a look at every operator: it must be there with the attributes that are used.

    Between opset 20 and 24 the operators of the graphs got types and attributes, but no other meaning.
    """
    ClearMetadataAndDocStringPass()(model)  # metadata came with IR version 10
    for node in _all_nodes(model.graph):
        if node.domain:
            continue
        if not onnx.defs.has(node.op_type, BASIC_OPSET):
            raise BackendError(
                f"{node.op_type} {node.name!r} is not in opset {BASIC_OPSET}, the last one of TensorRT before 10.15; "
                "use TensorRT 10.15 or later"
            )
        unknown = set(node.attributes) - set(onnx.defs.get_schema(node.op_type, BASIC_OPSET).attributes)
        if unknown:
            raise refuse(node, f"the attribute {min(unknown)}")
    model.opset_imports[""] = BASIC_OPSET
    model.ir_version = BASIC_IR_VERSION


def _all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes and those of their subgraphs."""
    return iter(ir.traversal.RecursiveGraphIterator(graph))
