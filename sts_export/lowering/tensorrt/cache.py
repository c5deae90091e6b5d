"""TensorScatter in basic operators: the updated cache is a new tensor."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sts_export.lowering.rewriter import Rewriter, attribute
from sts_export.lowering.tensorrt.checks import fixed, plain, refuse, required


@dataclass(frozen=True)
class _Columns:
    """What all caches of a graph share; made by the first, for all layers write the same rows.

    written: [batch, 1, capacity, 1] bool; columns that this call writes
    source: [batch, kv_heads, capacity] int32; the row of the flattened update that belongs there, any row elsewhere
    """

    written: ir.Value
    source: ir.Value


def lower_tensor_scatter(rewriter: Rewriter, node: ir.Node) -> None:
    """``Where(column is written now, its new row, the old cache)``.

    cache [batch, kv_heads, capacity, head_dim]; update [batch, kv_heads, rows, head_dim]; write_index [batch] -> the cache with
    update in the columns write_index .. write_index + rows - 1.

    Why not ScatterND or ScatterElements: by definition they write into a copy of the whole cache, so that one pass over it is
    what every form costs, in prefill and in decode; they add a second one over the new rows with an index per row or, for
    ScatterElements, per element; and an index beyond the capacity writes beyond the buffer.  A look-up and a selection are one
    pass, element-wise in the output, which the builder may fuse with what stands around them; in decode all look-ups of a head
    read the one new row.  Columns beyond the capacity drop out, as with TensorRT's own cache update.  Index and comparison are
    made once for all layers.  This was reasoned, not measured.
    """
    plain(node, mode="linear")
    cache, update, write_index = (required(node, index) for index in range(3))
    if attribute(node, "axis", -2) not in (2, -2) or cache.shape is None or len(cache.shape) != 4:
        raise refuse(node, "a cache that is not [batch, heads, capacity, head_dim]")
    heads, capacity, width = (fixed(node, cache, axis) for axis in (1, 2, 3))
    rewriter.start(node)
    columns = _columns(rewriter, update, write_index, heads, capacity)
    rows = rewriter.op("Reshape", update, rewriter.int64([-1, width]))
    new = rewriter.op("Gather", rows, columns.source, axis=0)
    rewriter.replace(rewriter.op("Where", columns.written, new, cache))


def _columns(rewriter: Rewriter, update: ir.Value, write_index: ir.Value, heads: int, capacity: int) -> _Columns:
    key = (write_index, heads, capacity)
    op, zero, one = rewriter.op, rewriter.int64(0), rewriter.int64(1)
    count = rewriter.shared(("update rows", key), lambda: op("Shape", update, start=2, end=3))  # [1]

    def row_of_column() -> ir.Value:
        """[batch, capacity]; negative or beyond count where the column is not written"""
        return op("Sub", rewriter.arange(capacity), op("Unsqueeze", write_index, rewriter.int64([1])))

    row = rewriter.shared(("row of column", key), row_of_column)

    def written() -> ir.Value:
        inside = op("And", op("GreaterOrEqual", row, zero), op("Less", row, count))
        return op("Unsqueeze", inside, rewriter.int64([1, 3]))

    def source() -> ir.Value:
        all_heads = op("Squeeze", op("Mul", op("Shape", write_index), rewriter.int64([heads])), rewriter.int64([0]))
        head = op("Reshape", op("Range", zero, all_heads, one), rewriter.int64([-1, heads, 1]))
        there = op("Min", op("Max", row, zero), op("Sub", count, one))
        index = op("Add", op("Mul", head, count), op("Unsqueeze", there, rewriter.int64([1])))
        # TensorRT gathers by int32; cast here, it is cast once.
        return rewriter.cast(index, ir.DataType.INT32)

    return _Columns(rewriter.shared(("written", key), written), rewriter.shared(("source", key), source))
