"""Blocks every part shares: linear, norms, activations.

Hidden states travel as matrices ``[rows, width]`` with rows = batch * sequence, so that every linear layer is one Gemm on
the checkpoint's own ``[out, in]`` weight: no transposed second copy, neither in the file nor in an engine.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import Dtype

Op = Any  # onnxscript's OpBuilder: operators are looked up by attribute

DTYPES: dict[str, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "bool": ir.DataType.BOOL,
}


def activate(op: Op, x: ir.Value, name: str) -> ir.Value:
    """One of ``configs.ACTIVATIONS``, named as in transformers' ``ACT2FN``."""
    if name == "silu":
        return op.Mul(x, op.Sigmoid(x))
    if name == "quick_gelu":
        return op.Mul(x, op.Sigmoid(op.Mul(x, 1.702)))
    if name == "gelu":
        return op.Gelu(x)
    if name == "gelu_pytorch_tanh":
        return op.Gelu(x, approximate="tanh")
    raise ValueError(f"no activation {name!r}")


class Linear(nn.Module):
    """y = x W^T + b.  weight: [out, in]; bias: [out]; x: [rows, in]."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, dtype: Dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter([out_features, in_features], DTYPES[dtype])
        self.bias = nn.Parameter([out_features], DTYPES[dtype]) if bias else None

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        if self.bias is None:
            return op.Gemm(x, self.weight, transB=1)
        return op.Gemm(x, self.weight, self.bias, transB=1)


class RMSNorm(nn.Module):
    """Root-mean-square norm; statistics in float32.  weight: [width]."""

    def __init__(self, width: int, eps: float, dtype: Dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter([width], DTYPES[dtype])

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self.eps)


class LayerNorm(nn.Module):
    """Layer norm; statistics in float32.  weight, bias: [width]."""

    def __init__(self, width: int, eps: float, dtype: Dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter([width], DTYPES[dtype])
        self.bias = nn.Parameter([width], DTYPES[dtype])

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.eps)


def dims(op: Op, x: ir.Value, start: int, end: int) -> ir.Value:
    """Dimensions start..end-1 of ``x`` as an int64 vector."""
    return op.Shape(x, start=start, end=end)


def concat_dims(op: Op, *parts: ir.Value | int) -> ir.Value:
    """An int64 shape vector from one-element vectors and plain integers."""
    return op.Concat(*[op.Constant(value_ints=[part]) if isinstance(part, int) else part for part in parts], axis=0)
