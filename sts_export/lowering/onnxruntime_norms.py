"""Residual additions and the norms after them, as one operator of ONNX Runtime.

    sum = x + y;  RMSNormalization(sum)  ->  SkipSimplifiedLayerNormalization(x, y), which gives the sum as well

It has kernels for the CPU (float32, float16) and CUDA (float32, float16, bfloat16), and saves two launches a decoder layer.
Statistics are computed in float32, as the machine code of 1.31.1's CUDA kernel shows for float16; older versions add up
squares in float16.  ONNX Runtime's own fusion knows SimplifiedLayerNormalization alone, which came before ONNX's operator.
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sts_export.lowering.onnxruntime_attention import CONTRIB

if TYPE_CHECKING:
    import onnx_ir as ir


def fuse_norms(graph: ir.Graph) -> bool:
    """Replace norms of sums, [rows, width] each.

    Returns:
        Whether there was one to replace.
    """
    from sts_export.lowering.rewriter import Rewriter

    rewriter = Rewriter(graph, named=False)
    replaced = False
    for node in [node for node in graph if node.op_type == "RMSNormalization" and node.domain == ""]:
        total = node.inputs[0]
        add = total.producer() if total is not None else None
        if total is None or add is None or add.op_type != "Add" or total.is_graph_output() or not _computed(add):
            continue
        # In place of the addition: whoever else takes the sum may come before the norm.
        rewriter.start(add)
        epsilon = node.attributes["epsilon"].as_float()
        normed, _, _, summed = rewriter.ops(
            "SkipSimplifiedLayerNormalization", *add.inputs, node.inputs[1], outputs=4, domain=CONTRIB, epsilon=epsilon
        )
        rewriter.take_place(node.outputs[0], normed)
        rewriter.take_place(total, summed)
        replaced = True
    return replaced


def _computed(add: ir.Node) -> bool:
    """Both are hidden states of one shape; a weight would be added to every row."""
    return all(value is not None and value.producer() is not None for value in add.inputs)
