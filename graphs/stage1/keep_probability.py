"""How likely a trained selector keeps each token: an MLP of the tower's features, always in float32.

Weight names: ``linear_1``, ``linear_2`` (pruning/stage1/learned.py).
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.layers import Linear, Op, activate, concat_dims, dims


class KeepProbability(nn.Module):
    """x: [crops, rows, width] float32 -> [crops, rows] float32; of the two outputs the second is "keep"."""

    def __init__(self, width: int, *, name: str) -> None:
        super().__init__(name)
        self.width = width
        self.linear_1 = Linear(width, width // 2, bias=True, dtype="float32")
        self.linear_2 = Linear(width // 2, 2, bias=True, dtype="float32")

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        flat = op.Reshape(x, concat_dims(op, -1, self.width))
        both = op.Softmax(self.linear_2(op, activate(op, self.linear_1(op, flat), "gelu")), axis=-1)
        return op.Reshape(op.Gather(both, op.Constant(value_int=1), axis=1), dims(op, x, 0, 2))
