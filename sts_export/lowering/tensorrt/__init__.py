"""A bundle's graph in the form that a given TensorRT takes.

    lower(graph, version, plugins=...) -> LoweredGraph

A bundle's graphs are opset 24 with model-local functions of the pruning stages.  Two things may have to change:

- With a plugin library the bodies of functions that have a plugin go, and their calls become what the parser's plugin importer
  looks up: a plugin of the node's name in the namespace and version that the node's attributes say.
- TensorRT before 10.15 lacks Attention (10.14), RotaryEmbedding, RMSNormalization and TensorScatter (10.15).  They become
  basic operators (attention.py, cache.py, basic.py), the function bodies go into the graph, and opset and IR version go down to
  what TensorRT 10.0 says it takes: "the inclusive range of opset 9 to opset 20" (its parser is built with ONNX 1.16; opset 20
  belongs to IR version 9).

Weights are never read: initializers go on referring to external data by file name, offset and length.
Source: https://github.com/onnx/onnx-tensorrt, docs/operators.md and onnxOpImporters.cpp of the release/10.* branches.
"""

from __future__ import annotations

from dataclasses import dataclass

from sts_export.errors import RequestError

# The first version with all fused operators of the graphs.
FUSED = (10, 15)
_DOMAINS = {"", "sts"}


@dataclass(frozen=True)
class LoweredGraph:
    """A graph for one version of TensorRT.

    graph: serialized ModelProto; external data refer to the same files by name.
    aliased_caches: cache outputs may be bound to the address of their inputs (IKVCacheUpdateLayer); otherwise they are new
        tensors, and the runtime needs two buffers of each cache and swaps them.
    """

    graph: bytes
    aliased_caches: bool


def lower(graph: bytes, version: tuple[int, int], *, plugins: bool) -> LoweredGraph:
    """The graph in the form that TensorRT ``version`` takes; the same input gives the same bytes.

    Args:
        graph: serialized ModelProto of one of a bundle's graphs.
        version: (major, minor) of TensorRT; TensorRT for RTX counts as (11, 0).
        plugins: the plugin library stands in for the functions that it has a plugin for; otherwise their bodies do.

    Raises:
        RequestError: the graph has operators of another engine (a quantized bundle).
        BackendError: the graph has a form that cannot be lowered.
    """
    import onnx

    proto = onnx.load_model_from_string(graph)
    foreign = sorted({item.domain for item in proto.opset_import} - _DOMAINS)
    if foreign:
        raise RequestError(
            f"the graph {proto.graph.name} has operators of {foreign[0]}, which TensorRT does not take; "
            "export without --quantize for TensorRT"
        )
    fused = tuple(version) >= FUSED
    if not (fused and (not plugins or not proto.functions)):
        from sts_export.lowering.tensorrt.graph import lowered

        graph = lowered(proto, basic=not fused, plugins=plugins)
    return LoweredGraph(graph, aliased_caches=fused)
