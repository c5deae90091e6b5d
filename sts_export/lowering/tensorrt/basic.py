"""RMSNormalization, CumSum and Conv in basic operators."""

from __future__ import annotations

import onnx_ir as ir

from sts_export.lowering.rewriter import Rewriter, attribute
from sts_export.lowering.tensorrt.checks import dtype_of, fixed, plain, refuse, required

# Columns of one block of a running sum.
_BLOCK = 128


def lower_rms_normalization(rewriter: Rewriter, node: ir.Node) -> None:
    """x / sqrt(mean(x ** 2) + epsilon) in float32, rounded, then times the weight: the operator's own definition.

    x: [..., width]; weight: [width].
    """
    plain(node, axis=-1, stash_type=1)
    x, weight = required(node, 0), required(node, 1)
    dtype, epsilon = dtype_of(node, x), attribute(node, "epsilon", 1e-5)
    rewriter.start(node)
    op = rewriter.op
    wide = x if dtype == ir.DataType.FLOAT else rewriter.cast(x, ir.DataType.FLOAT)
    mean = op("ReduceMean", op("Mul", wide, wide), rewriter.int64([-1]), keepdims=1)
    normal = op("Div", wide, op("Sqrt", op("Add", mean, rewriter.float32(epsilon))))
    if dtype != ir.DataType.FLOAT:
        normal = rewriter.cast(normal, dtype)
    rewriter.replace(op("Mul", normal, weight))


def lower_convolution(rewriter: Rewriter, node: ir.Node) -> None:
    """The patch embedding of a CLIP tower as one Gemm, where it is in bfloat16: Conv takes that from opset 22 only.

    x [crops, channels, height, width]; weight [features, channels, patch, patch], with strides of a patch ->
    [crops, features, height / patch, width / patch].
    """
    x, weight = required(node, 0), required(node, 1)
    if dtype_of(node, x) != ir.DataType.BFLOAT16:
        return
    channels, height, width = (fixed(node, x, axis) for axis in (1, 2, 3))
    features, down, across = (fixed(node, weight, axis) for axis in (0, 2, 3))
    plain(node, auto_pad="NOTSET", group=1, dilations=[1, 1], pads=[0, 0, 0, 0], kernel_shape=[down, across])
    if attribute(node, "strides", [1, 1]) != [down, across] or len(node.inputs) > 2:
        raise refuse(node, "bfloat16 and patches that overlap, or a bias")
    rows, columns, size = height // down, width // across, channels * down * across
    rewriter.start(node)
    op, int64 = rewriter.op, rewriter.int64
    if (rows * down, columns * across) != (height, width):
        x = op("Slice", x, int64([0, 0]), int64([rows * down, columns * across]), int64([2, 3]))
    cut = op("Reshape", x, int64([-1, channels, rows, down, columns, across]))
    patches = op("Reshape", op("Transpose", cut, perm=[0, 2, 4, 1, 3, 5]), int64([-1, size]))
    embedded = op("Gemm", patches, op("Reshape", weight, int64([features, size])), transB=1)
    by_crop = op("Transpose", op("Reshape", embedded, int64([-1, rows * columns, features])), perm=[0, 2, 1])
    rewriter.replace(op("Reshape", by_crop, int64([0, features, rows, columns])))


def lower_cumsum(rewriter: Rewriter, node: ir.Node) -> None:
    """Running count over the columns of x [rows, columns], int64 values of 0 and 1.

    TensorRT 10.0 takes CumSum of floating-point numbers only, and runs it as a loop of one step a column.  Here it is two
    products: running sums within blocks of 128 columns, and the sums of the blocks before.  No value exceeds 128 before the
    last addition, so that it is exact even in TF32.
    """
    plain(node, exclusive=0, reverse=0)
    x, axis = required(node, 0), ir.convenience.get_const_tensor(required(node, 1))
    if x.shape is None or len(x.shape) != 2 or axis is None or int(axis.numpy()) not in (1, -1):
        raise refuse(node, "anything but the last axis of a matrix")
    rewriter.start(node)
    op, axis1 = rewriter.op, rewriter.int64([1])
    zero, one, size = rewriter.int64(0), rewriter.int64(1), rewriter.int64([_BLOCK])
    length = op("Shape", x, start=1, end=2)
    blocks = op("Div", op("Add", length, rewriter.int64([_BLOCK - 1])), size)  # [1]
    padding = op("Concat", op("Shape", x, start=0, end=1), rewriter.int64([_BLOCK - 1]), axis=0)
    padded = op("Concat", rewriter.cast(x, ir.DataType.FLOAT), op("Expand", rewriter.float32(0.0), padding), axis=1)
    padded = op("Slice", padded, rewriter.int64([0]), op("Mul", blocks, size), axis1)
    parts = op("Reshape", padded, rewriter.int64([0, -1, _BLOCK]))  # [rows, blocks, 128]

    column = rewriter.arange(_BLOCK)
    within = op("MatMul", parts, _as_float(rewriter, "LessOrEqual", column))
    block = op("Range", zero, op("Squeeze", blocks, rewriter.int64([0])), one)
    sums = op("ReduceSum", parts, rewriter.int64([2]), keepdims=0)  # [rows, blocks]
    before = op("MatMul", sums, _as_float(rewriter, "Less", block))
    total = op("Reshape", op("Add", within, op("Unsqueeze", before, rewriter.int64([2]))), rewriter.int64([0, -1]))
    total = op("Slice", total, rewriter.int64([0]), length, axis1)
    rewriter.replace(rewriter.cast(total, dtype_of(node, x)))


def _as_float(rewriter: Rewriter, comparison: str, index: ir.Value) -> ir.Value:
    """[n, n] float32: 1 where comparison(row, column) of ``index`` [n] holds."""
    rows = rewriter.op("Unsqueeze", index, rewriter.int64([1]))
    return rewriter.cast(rewriter.op(comparison, rows, index), ir.DataType.FLOAT)
