"""Values of stored tensors, a block at a time; those that an adapter changes are merged while they are read.

A merged weight is ``W + scaling * B A`` (peft ``LoraLayer.get_delta_weight``), computed in float32 and rounded once, by
whoever stores it.  Memory is one block of the matrix and the two factors, whatever the matrix's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.checkpoints.safetensors_header import TensorEntry
from sts_export.dtypes import DTYPES, ELEMENT_TYPES, numpy_dtype
from sts_export.errors import CheckpointError

FLOATS: dict[str, np.dtype[Any]] = {ELEMENT_TYPES[dtype].safetensors: numpy_dtype(dtype) for dtype in DTYPES}

Values = NDArray[np.generic]


@dataclass(frozen=True)
class LowRank:
    """A change ``scaling * left @ right`` of a matrix [rows, columns].

    Args:
        left: [rows, rank]; or [rank, rows] with ``left_transposed``.
        right: [rank, columns]; or [columns, rank] with ``right_transposed``.
    """

    left: TensorEntry
    right: TensorEntry
    scaling: float
    left_transposed: bool = False
    right_transposed: bool = False

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[rows, rank] and [rank, columns], read from the adapter's file."""
        left, right = _factor(self.left), _factor(self.right)
        return (left.T if self.left_transposed else left), (right.T if self.right_transposed else right)


@dataclass(frozen=True)
class MergedTensor(TensorEntry):
    """A tensor of the checkpoint as an adapter changes it; ``nbytes`` and ``dtype`` are those of the stored one."""

    delta: LowRank


class Reader:
    """An open tensor, as a matrix: everything after its first dimension is one row."""

    def __init__(self, stream: FileIO, entry: TensorEntry) -> None:
        self._stream, self._entry = stream, entry
        self._source = FLOATS[entry.dtype]
        self.rows = entry.shape[0] if entry.shape else 1
        self.columns = math.prod(entry.shape[1:])
        self._factors = entry.delta.factors() if isinstance(entry, MergedTensor) else None

    def window(self, rows: range, columns: range) -> Values:
        """[rows, columns], a new array in the stored dtype, or float32 where an adapter changes the tensor.

        Raises:
            CheckpointError: the file ends early.
        """
        block = np.empty((len(rows), len(columns)), self._source)
        raw = block.view(np.uint8)
        whole = len(columns) == self.columns
        for index, row in enumerate(rows[:1] if whole else rows):
            start = self._entry.offset + (row * self.columns + columns.start) * self._source.itemsize
            _read_into(self._stream, raw.reshape(-1) if whole else raw[index], start, self._entry)
        if self._factors is None:
            return block
        assert isinstance(self._entry, MergedTensor)
        left, right = self._factors
        change = left[rows.start : rows.stop] @ right[:, columns.start : columns.stop]
        change *= np.float32(self._entry.delta.scaling)
        change += block.astype(np.float32, copy=False)
        return change


def blocks(entry: TensorEntry, most: int) -> Iterator[Values]:
    """All values in order, flat: at most ``most`` at a time, or one row of a matrix that an adapter changes.

    A fresh array each time: the one before may still be read by whoever took it.

    Raises:
        CheckpointError: the file ends early.
    """
    with entry.file.open("rb", buffering=0) as stream:
        if isinstance(entry, MergedTensor):
            reader = Reader(stream, entry)
            step = max(1, most // max(1, reader.columns))
            for first in range(0, reader.rows, step):
                rows = range(first, min(reader.rows, first + step))
                yield reader.window(rows, range(reader.columns)).reshape(-1)
            return
        source, done = FLOATS[entry.dtype], 0
        while done < entry.nbytes:
            block = np.empty(min((entry.nbytes - done) // source.itemsize, most), source)
            _read_into(stream, block.view(np.uint8), entry.offset + done, entry)
            done += block.nbytes
            yield block


def _factor(entry: TensorEntry) -> NDArray[np.float32]:
    """float32 [first dimension, all others]."""
    values = np.empty(math.prod(entry.shape), FLOATS[entry.dtype])
    with entry.file.open("rb", buffering=0) as stream:
        _read_into(stream, values.view(np.uint8), entry.offset, entry)
    matrix: NDArray[np.float32] = values.astype(np.float32, copy=False).reshape(entry.shape[0], -1)
    return matrix


def _read_into(stream: FileIO, target: NDArray[np.uint8], offset: int, entry: TensorEntry) -> None:
    """Fill ``target`` [bytes] from an absolute place of the file; one read call may return less than 2 GB were asked for."""
    stream.seek(offset)
    view = memoryview(target.data)
    while view:
        count = stream.readinto(view)
        if not count:
            raise CheckpointError(f"{entry.file} ended early in {entry.name}; download or copy it again")
        view = view[count:]
