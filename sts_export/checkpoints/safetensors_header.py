"""The header of a .safetensors file: which tensor lies where.

Format: 8-byte little-endian header length, JSON header, then the tensors without gaps
(https://github.com/huggingface/safetensors#format).  Offsets are what zero-copy export needs, and the safetensors
library does not tell them.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from sts_export.checkpoints.git_lfs import refuse_pointer
from sts_export.dtypes import ELEMENT_TYPES
from sts_export.errors import CheckpointError

ITEM_SIZE = {element.safetensors: element.itemsize for element in ELEMENT_TYPES.values()}
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor: ``nbytes`` bytes at absolute ``offset`` of ``file``."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: Path) -> tuple[dict[str, TensorEntry], str]:
    """All tensors of ``file`` and its fingerprint: a sha256 of the header and of samples of the data.

    Two fine-tunes of one model have the same header; hashing gigabytes takes too long.  The samples tell them apart at once.

    Raises:
        CheckpointError: not a safetensors file, damaged, or shorter than its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            raw = stream.read(length) if length <= min(size, _MAX_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; check the file and its permissions") from None
    if not raw or len(raw) != length:
        refuse_pointer(file)
        raise CheckpointError(f"{file} is not a complete safetensors file; download or copy it again")
    try:
        header = json.loads(raw)
        entries = {name: _entry(name, item, file, 8 + length) for name, item in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{file} has a damaged safetensors header; download or copy it again") from None
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != end:
            raise CheckpointError(
                f"{file} has a damaged safetensors header: {entry.name} overlaps its neighbour or leaves a gap; "
                "download or copy it again"
            )
        end += entry.nbytes
    if end != size:
        state = "truncated" if size < end else "damaged"
        raise CheckpointError(f"{file} is {state}: {size} bytes instead of {end}; download or copy it again")
    return entries, _fingerprint(file, raw, size)


def fingerprint(file: Path) -> str:
    """sha256 of a small file beside the weights.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; check the file and its permissions") from None


def _fingerprint(file: Path, header: bytes, size: int) -> str:
    digest = hashlib.sha256(header)
    try:
        with file.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(size * number // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; check the file and its permissions") from None
    return digest.hexdigest()


def _entry(name: str, item: dict[str, object], file: Path, data_start: int) -> TensorEntry:
    shape, (begin, end), dtype = _sizes(item["shape"]), _sizes(item["data_offsets"]), item["dtype"]
    if not isinstance(dtype, str) or end < begin:
        raise ValueError(name)
    if dtype in ITEM_SIZE and end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise ValueError(name)
    return TensorEntry(name, file, dtype, shape, data_start + begin, end - begin)


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 63 for value in values):
        raise ValueError(values)
    return tuple(values)


def encode_header(tensors: list[tuple[str, str, tuple[int, ...], int]], alignment: int = 4096) -> bytes:
    """Length prefix and JSON header for (name, dtype, shape, nbytes) in file order; data starts at ``alignment``."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape, nbytes in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % alignment)
    return struct.pack("<Q", len(raw)) + raw
