"""Replace linear layers and embedding tables of a finished float32 graph by 8- or 4-bit operators of ONNX Runtime.

    Gemm(x, W, b, transB=1)  -> Columns: per-row int8 activations x per-column int8 weights, MatMulIntegerToFloat
                             -> Blocks:  MatMulNBits on the checkpoint's own [out, in] order
    Gather(W, ids)           -> Blocks:  GatherBlockQuantized on the same bytes as a MatMulNBits of W

Which is best was measured on ONNX Runtime 1.31 (CPU, AVX2): Columns is the only form whose prefill is faster than float32;
MatMulNBits is smallest and best for a single row, and slower than float32 for many rows.  ``W`` becomes ``W.quantized`` and
``W.scales``, parameters without data like all others; :class:`QuantizedWeight` says what they are made from.
Source: the schemas of com.microsoft::{MatMulIntegerToFloat, MatMulNBits, GatherBlockQuantized}, version 1
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from sts_export.lowering.rewriter import Rewriter, attribute

CONTRIB = "com.microsoft"
# |weight| <= 64 and activations <= 255: kernels for CPUs without VNNI add two products in 16 bits with saturation, and
# 2 * 255 * 64 still fits.  With the full 127 a result could be wrong by half, depending on the CPU.
COLUMN_LIMIT = 64
_SMALLEST_BLOCK = 16  # of both block operators
_ACTIVATION_LIMIT, _ACTIVATION_ZERO = 127, 128
_TINY = 1e-20  # stands in for the largest magnitude of an all-zero row


@dataclass(frozen=True)
class Columns:
    """int8, one scale per output feature; activations are quantized at run time, one scale per row.

    W.quantized: [in, out] int8 (transposed); W.scales: [out] float32.
    """


@dataclass(frozen=True)
class Blocks:
    """Unsigned ``bits`` (4 or 8) around 2^(bits-1), one scale per ``block_size`` input features.

    W.quantized: [out, ceil(in / block_size), block_size * bits / 8] uint8, low bits first, the last block padded;
    W.scales: [out, ceil(in / block_size)] float32.
    """

    bits: int
    block_size: int

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"{self.bits} bits: choose 4 or 8")
        if self.block_size < _SMALLEST_BLOCK or self.block_size & (self.block_size - 1):
            raise ValueError(f"block size {self.block_size}: choose a power of two from {_SMALLEST_BLOCK}")

    def count(self, columns: int) -> int:
        """Blocks of a row of ``columns`` weights."""
        return -(-columns // self.block_size)

    @property
    def blob(self) -> int:
        """Bytes of a block."""
        return self.block_size * self.bits // 8


Form = Columns | Blocks


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight [rows = out, columns = in] of the checkpoint and the form it takes in the graphs."""

    source: str
    form: Form
    rows: int
    columns: int

    @property
    def data_name(self) -> str:
        return f"{self.source}.quantized"

    @property
    def scales_name(self) -> str:
        return f"{self.source}.scales"

    @property
    def data_shape(self) -> tuple[int, ...]:
        if isinstance(self.form, Columns):
            return (self.columns, self.rows)
        return (self.rows, self.form.count(self.columns), self.form.blob)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        return (self.rows,) if isinstance(self.form, Columns) else (self.rows, self.form.count(self.columns))


@dataclass(frozen=True)
class Scheme:
    """The form of every kind of weight.

    wide: the graphs before the decoder (vision tower, projector); layer: decoder layers; table: embedding and head, which
    share one matrix in tied models.  The head only ever sees one row per request, so Blocks costs it no time.  None leaves
    a kind in float32.
    """

    wide: Form | None
    layer: Form | None
    table: Blocks | None


# Before the decoder all stays float32: an int8 tower is a quarter faster and the demo model's answers stay as right, but
# stage 1 then keeps other tokens (14 % of them at budget 64), and a bundle can no longer be compared with its reference.
# Embedding and head keep 8 bits in int4 too: they are a few percent of a 7B model, and errors in them reach every token.
SCHEMES = {
    "int8": Scheme(wide=None, layer=Columns(), table=Blocks(8, 128)),
    "int4": Scheme(wide=None, layer=Blocks(4, 32), table=Blocks(8, 128)),
}
_TABLES = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Quantization:
    """What was done to one graph.  kept: weight -> why it stays in float32."""

    weights: tuple[QuantizedWeight, ...]
    kept: dict[str, str]


def chooser(scheme: Scheme, *, wide: bool) -> Callable[[str], Form | None]:
    """Parameter name -> form under ``scheme``; ``wide`` for vision_encoder and selector."""
    own = scheme.wide if wide else scheme.layer

    def choose(name: str) -> Form | None:
        return scheme.table if any(part in _TABLES for part in name.split(".")) else own

    return choose


def quantize(model: ir.Model, choose: Callable[[str], Form | None]) -> Quantization:
    """Rewrite every Gemm and Gather on a two-dimensional parameter for which ``choose`` names a form, in place.

    A parameter is rewritten in all its uses or in none, so that no graph ever refers to both versions of a weight.

    Raises:
        ValueError: a chosen parameter is not float32.
    """
    weights: list[QuantizedWeight] = []
    kept: dict[str, str] = {}
    quantizer = _Quantizer(model.graph)
    for parameter in list(model.graph.initializers.values()):
        if not isinstance(parameter, nn.Parameter) or parameter.const_value is not None or len(parameter.shape) != 2:
            continue
        form = choose(parameter.name)
        uses = [usage.node for usage in parameter.uses()]
        if form is None or not any(_is_linear(node, parameter) or _is_lookup(node, parameter) for node in uses):
            continue
        if parameter.dtype != ir.DataType.FLOAT:
            raise ValueError(f"{parameter.name} is {parameter.dtype.name}; quantized graphs are float32 around the weights")
        rows, columns = (int(size) for size in parameter.shape)
        fitted, reason = _fit(parameter, form, uses, columns)
        if fitted is None:
            kept[parameter.name] = reason
            continue
        weight = QuantizedWeight(parameter.name, fitted, rows, columns)
        for node in uses:
            quantizer.rewrite(node, weight)
        del model.graph.initializers[parameter.name]
        weights.append(weight)
    if weights:
        model.graph.opset_imports[CONTRIB] = 1
    return Quantization(tuple(weights), kept)


def fitting_block(columns: int, block_size: int) -> int | None:
    """The largest block of at most ``block_size`` that divides ``columns``; None if none of 16 or more does."""
    while block_size >= _SMALLEST_BLOCK:
        if columns % block_size == 0:
            return block_size
        block_size //= 2
    return None


def _fit(parameter: ir.Value, form: Form, uses: list[ir.Node], columns: int) -> tuple[Form | None, str]:
    """The form that these uses allow, or why there is none."""
    if not all(_is_linear(node, parameter) or _is_lookup(node, parameter) for node in uses):
        return None, "used by other operators than a linear layer or a lookup"
    if isinstance(form, Columns):
        if any(node.op_type == "Gather" for node in uses):
            return None, "a lookup cannot read transposed columns"
        return form, ""
    if not _is_table(parameter):
        return form, ""  # MatMulNBits pads the last block
    # GatherBlockQuantized does not pad, and the embedding of a tied model must have the very bytes that its head has.
    block = fitting_block(columns, form.block_size)
    return (
        (None, f"its rows of {columns} are not a multiple of {_SMALLEST_BLOCK}")
        if block is None
        else (Blocks(form.bits, block), "")
    )


def _is_table(parameter: ir.Value) -> bool:
    return "embed_tokens" in str(parameter.name).split(".")


def _is_linear(node: ir.Node, weight: ir.Value) -> bool:
    defaults = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    plain = {name: attribute(node, name, value) for name, value in defaults.items()} == {**defaults, "transB": 1}
    used = [index for index, value in enumerate(node.inputs) if value is weight]
    return node.domain == "" and node.op_type == "Gemm" and plain and used == [1]


def _is_lookup(node: ir.Node, table: ir.Value) -> bool:
    return node.domain == "" and node.op_type == "Gather" and attribute(node, "axis", 0) == 0 and node.inputs[0] is table


class _Quantizer:
    """Inserts the quantized operators; activations that several layers share are quantized once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._rewriter = Rewriter(graph, named=False)
        self._initializers = graph.initializers
        self._quantized_rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def rewrite(self, node: ir.Node, weight: QuantizedWeight) -> None:
        """Put the quantized form in the place of ``node``, a Gemm or Gather."""
        self._rewriter.start(node)
        integer = ir.DataType.INT8 if isinstance(weight.form, Columns) else ir.DataType.UINT8
        scales = self._parameter(weight.scales_name, weight.scales_shape, ir.DataType.FLOAT)
        if node.op_type == "Gather":
            assert isinstance(weight.form, Blocks)
            # No padding here (_fit), so these are the bytes of data_shape.
            shape = (weight.rows, weight.columns * weight.form.bits // 8)
            result = self._lookup(node, self._parameter(weight.data_name, shape, integer), scales, weight.form)
        else:
            data = self._parameter(weight.data_name, weight.data_shape, integer)
            if isinstance(weight.form, Columns):
                result = self._columns(node, data, scales)
            else:
                result = self._blocks(node, data, scales, weight.form, weight)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                result = self._rewriter.op("Add", result, node.inputs[2])
        self._rewriter.replace(result)

    def _columns(self, node: ir.Node, data: ir.Value, scales: ir.Value) -> ir.Value:
        """x [rows, in] -> [rows, out]:  sum of integer products, times row scale, times column scale."""
        op = self._rewriter.op
        quantized, largest = self._quantized(node.inputs[0])
        step = self._constant("step", np.float32(1 / _ACTIVATION_LIMIT))
        product = op("MatMulIntegerToFloat", quantized, data, step, scales, self._zero_point(), domain=CONTRIB)
        return op("Mul", product, largest)

    def _quantized(self, x: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """x as uint8 around 128 with its rows divided by their largest magnitude, and that magnitude [rows, 1].

        One scale for the whole matrix, as DynamicQuantizeMatMul has, would let one extreme token (Llama's first one)
        round all others to nothing.
        """
        assert x is not None
        if x not in self._quantized_rows:
            op = self._rewriter.op
            largest = op("ReduceMax", op("Abs", x), self._constant("last_axis", np.array([-1], np.int64)))
            largest = op("Max", largest, self._constant("tiny", np.float32(_TINY)))
            unit = op("Div", x, largest)
            step = self._constant("step", np.float32(1 / _ACTIVATION_LIMIT))
            self._quantized_rows[x] = op("QuantizeLinear", unit, step, self._zero_point()), largest
        return self._quantized_rows[x]

    def _zero_point(self) -> ir.Value:
        return self._constant("zero_point", np.uint8(_ACTIVATION_ZERO))

    def _blocks(self, node: ir.Node, data: ir.Value, scales: ir.Value, form: Blocks, weight: QuantizedWeight) -> ir.Value:
        """accuracy_level 4: activations become int8 too, per row and block; without it the kernel is several times slower."""
        return self._rewriter.op(
            "MatMulNBits",
            node.inputs[0],
            data,
            scales,
            domain=CONTRIB,
            K=weight.columns,
            N=weight.rows,
            bits=form.bits,
            block_size=form.block_size,
            accuracy_level=4,
        )

    def _lookup(self, node: ir.Node, data: ir.Value, scales: ir.Value, form: Blocks) -> ir.Value:
        return self._rewriter.op(
            "GatherBlockQuantized",
            data,
            node.inputs[1],
            scales,
            domain=CONTRIB,
            bits=form.bits,
            block_size=form.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _parameter(self, name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        found = self._initializers.get(name)
        if found is None:
            found = nn.Parameter(list(shape), dtype, name=name)
            self._initializers[name] = found
        elif tuple(found.shape) != shape:
            raise ValueError(f"{name} is wanted as {list(found.shape)} and as {list(shape)} in one graph")
        return found

    def _constant(self, name: str, value: np.ndarray | np.generic) -> ir.Value:
        full = f"quantize.{name}"
        if full not in self._initializers:
            tensor = ir.tensor(np.asarray(value), name=full)
            self._initializers[full] = ir.Value(
                name=full, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self._initializers[full]
