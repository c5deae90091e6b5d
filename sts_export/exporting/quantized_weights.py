"""Checkpoint tensors -> quantized tensors, streamed in bounded memory, so that a 13B model can be quantized on a laptop.

``quantized_layout`` lists the tensors to store, ``quantized_blocks`` yields the bytes of one of them.  Every stored tensor
is a pass of its own over its source: the scales, then the data, which recomputes the scales it needs.  The operating
system keeps the source in its page cache between the passes; this process never holds more than a few MB of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sts_export.checkpoints.merged import FLOATS, Reader
from sts_export.checkpoints.safetensors_header import ITEM_SIZE, TensorEntry
from sts_export.errors import CheckpointError
from sts_export.lowering.quantized_graphs import COLUMN_LIMIT, Blocks, Columns, QuantizedWeight

CHUNK_BYTES = 4 << 20  # of float32 weights held at a time; at least one row of one block

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the weights file: what ``encode_header`` wants, and what it is made from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    weight: QuantizedWeight
    part: Literal["data", "scales"]


def quantized_layout(weights: Iterable[QuantizedWeight]) -> list[StoredTensor]:
    """The tensors to store for ``weights``, each once however many graphs use it: all scales, then all data.

    In this order, and after the float32 tensors, everything in the file stays aligned to its item size.

    Raises:
        ValueError: two graphs want one weight in two forms.
    """
    by_source: dict[str, QuantizedWeight] = {}
    for weight in weights:
        if by_source.setdefault(weight.source, weight) != weight:
            raise ValueError(f"{weight.source} is wanted as {by_source[weight.source].form} and as {weight.form}")
    scales = [_stored(weight, "scales") for weight in by_source.values()]
    return scales + [_stored(weight, "data") for weight in by_source.values()]


def _stored(weight: QuantizedWeight, part: Literal["data", "scales"]) -> StoredTensor:
    if part == "scales":
        name, dtype, shape = weight.scales_name, "F32", weight.scales_shape
    else:
        name, dtype, shape = weight.data_name, "I8" if isinstance(weight.form, Columns) else "U8", weight.data_shape
    return StoredTensor(name, dtype, shape, int(np.prod(shape, dtype=np.int64)) * ITEM_SIZE[dtype], weight, part)


def quantized_blocks(entry: TensorEntry, tensor: StoredTensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The bytes of ``tensor``, made from ``entry``, its source in the checkpoint: float32, float16 or bfloat16 [out, in].

    Raises:
        CheckpointError: the file ends early, or a weight is not a finite number.
    """
    weight = tensor.weight
    if entry.shape != (weight.rows, weight.columns) or entry.dtype not in FLOATS:
        raise CheckpointError(
            f"{entry.name} is {entry.dtype} {list(entry.shape)}, which cannot be quantized as {weight.source}"
        )
    arrays: Iterator[NDArray[np.generic]]
    with entry.file.open("rb", buffering=0) as stream:
        reader = Reader(stream, entry)
        if isinstance(weight.form, Columns):
            arrays = _column_arrays(reader, entry, tensor.part, chunk_bytes)
        else:
            arrays = _block_arrays(reader, entry, weight.form, tensor.part, chunk_bytes)
        for array in arrays:
            yield memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def column_scales(rows: Floats) -> Floats:
    """[n, in] -> [n]: the largest magnitude of a row becomes 64."""
    return _nonzero(np.abs(rows).max(axis=1) / np.float32(COLUMN_LIMIT))


def column_values(rows: Floats, scales: Floats) -> NDArray[np.int8]:
    """[n, in] and [n] -> [n, in], within half a step of the source."""
    values: NDArray[np.int8] = np.clip(np.rint(rows / scales[:, None]), -COLUMN_LIMIT, COLUMN_LIMIT).astype(np.int8)
    return values


def block_scales(rows: Floats, form: Blocks) -> Floats:
    """[n, in] -> [n, blocks].

    A block's weight of largest magnitude becomes exactly -2^(bits-1), the one value that has no positive counterpart; its
    scale is negative if that weight is positive.  This uses all 16 values of 4 bits, and is what llama.cpp's Q4_0 and ONNX
    Runtime's own quantizer do.  Only a weight near the opposite extreme is off by more than half a step, and by at most one.
    """
    blocked = _blocked(rows, form)
    extreme = np.take_along_axis(blocked, np.abs(blocked).argmax(axis=2)[..., None], axis=2)[..., 0]
    return _nonzero(extreme / np.float32(-_zero(form)))


def block_values(rows: Floats, scales: Floats, form: Blocks) -> NDArray[np.uint8]:
    """[n, in] and [n, blocks] -> [n, blocks, blob], packed with the earlier weight in the lower bits."""
    values = (_block_steps(rows, scales, form) + np.float32(_zero(form))).astype(np.uint8)
    if form.bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return values


def block_rounded(rows: Floats, form: Blocks) -> Floats:
    """[n, in] -> [n, in]: the weights that operators make of the blocks again."""
    scales = block_scales(rows, form)
    blocked: Floats = _block_steps(rows, scales, form) * scales[..., None]
    return blocked.reshape(len(rows), -1)[:, : rows.shape[1]]


def _zero(form: Blocks) -> int:
    """What stands for 0 among the unsigned values."""
    return 1 << (form.bits - 1)


def _block_steps(rows: Floats, scales: Floats, form: Blocks) -> Floats:
    """[n, in] and [n, blocks] -> [n, blocks, block_size]: weights in whole steps, from -2^(bits-1)."""
    steps: Floats = np.rint(_blocked(rows, form) / scales[..., None])
    return np.clip(steps, -_zero(form), _zero(form) - 1)


def _nonzero(scales: Floats) -> Floats:
    """Weights that are all zero (or too small to have a scale) become zero under any scale."""
    return np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(1), scales).astype(np.float32)


def _blocked(rows: Floats, form: Blocks) -> Floats:
    """[n, in] -> [n, blocks, block_size], padded with zeros, which the operator never reads."""
    count = form.count(rows.shape[1])
    padded = np.pad(rows, ((0, 0), (0, count * form.block_size - rows.shape[1])))
    return padded.reshape(len(rows), count, form.block_size)


def _block_arrays(
    reader: Reader, entry: TensorEntry, form: Blocks, part: str, chunk_bytes: int
) -> Iterator[NDArray[np.generic]]:
    for rows in _row_chunks(reader, entry, chunk_bytes):
        scales = block_scales(rows, form)
        yield scales if part == "scales" else block_values(rows, scales, form)


def _column_arrays(reader: Reader, entry: TensorEntry, part: str, chunk_bytes: int) -> Iterator[NDArray[np.generic]]:
    """Scales [out], or data [in, out]: the transposed matrix a slab of source columns at a time."""
    scales = np.concatenate([column_scales(rows) for rows in _row_chunks(reader, entry, chunk_bytes)])
    if part == "scales":
        yield scales
        return
    out_features, in_features = entry.shape
    width = max(1, min(in_features, chunk_bytes // out_features))
    batch = max(1, chunk_bytes // (4 * width))
    for start in range(0, in_features, width):
        end = min(in_features, start + width)
        slab = np.empty((end - start, out_features), np.int8)
        for first in range(0, out_features, batch):
            last = min(out_features, first + batch)
            rows = _window(reader, entry, range(first, last), range(start, end))
            slab[:, first:last] = column_values(rows, scales[first:last]).T
        yield slab


def _row_chunks(reader: Reader, entry: TensorEntry, chunk_bytes: int) -> Iterator[Floats]:
    """The source as float32 [n, in], all rows in order."""
    out_features, in_features = entry.shape
    count = max(1, chunk_bytes // (4 * in_features))
    for first in range(0, out_features, count):
        yield _window(reader, entry, range(first, min(out_features, first + count)), range(in_features))


def _window(reader: Reader, entry: TensorEntry, rows: range, columns: range) -> Floats:
    """The source at ``rows`` and ``columns`` as float32, checked to be finite."""
    values: Floats = reader.window(rows, columns).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{entry.name} holds NaN or infinity; repair the checkpoint or export without --quantize")
    return values
