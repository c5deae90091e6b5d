"""Bind checkpoint tensors to graph parameters: match, then link in place or copy in a bounded stream."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sts_export.errors import CheckpointError, OutputError
from sts_export.safetensors_header import ITEM_SIZE, TensorEntry, encode_header

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.checkpoint import Checkpoint

COPY_FILE = "weights.safetensors"
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPES = {stored: dtype for dtype, stored in STORED.items()}
_CHUNK = 4 << 20  # elements converted at a time: bounds memory whatever a tensor's size

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Coverage:
    """How the checkpoint maps onto the graphs.

    used: parameter name -> stored tensor; unused: reason -> number of tensors deliberately left out.
    """

    used: dict[str, TensorEntry]
    unused: dict[str, int]


def match_weights(
    parameters: Mapping[str, tuple[int, ...]],
    checkpoint: Checkpoint,
    canonical_name: Callable[[str], str],
    unused_reason: Callable[[str], str | None],
) -> Coverage:
    """Every parameter gets exactly one tensor of its shape; every tensor is used or has a reason not to be.

    Raises:
        CheckpointError: names what is missing, misshapen, ambiguous or left over.
    """
    by_name: dict[str, TensorEntry] = {}
    for name, entry in checkpoint.tensors.items():
        target = canonical_name(name)
        if target in by_name:
            raise CheckpointError(
                f"tensors {by_name[target].name} and {name} are both {target}; the checkpoint mixes two layouts"
            )
        by_name[target] = entry
    missing = sorted(parameters.keys() - by_name.keys())
    if missing:
        raise CheckpointError(f"the checkpoint lacks {_listing(missing)}; it is incomplete or not of this architecture")
    misshapen = [
        f"{name} is {list(by_name[name].shape)} instead of {list(shape)}"
        for name, shape in parameters.items()
        if by_name[name].shape != shape
    ]
    if misshapen:
        raise CheckpointError(f"wrong shape: {_listing(misshapen)}; config.json and weights do not belong together")
    reasons = {name: unused_reason(name) for name in by_name if name not in parameters}
    unknown = sorted(name for name, reason in reasons.items() if reason is None)
    if unknown:
        raise CheckpointError(f"the graphs would not use {_listing(unknown)}; the checkpoint is not of this architecture")
    odd = [f"{name} ({by_name[name].dtype})" for name in sorted(parameters) if by_name[name].dtype not in _DTYPES]
    if odd:
        raise CheckpointError(f"unsupported stored type: {_listing(odd)}; use a float32, float16 or bfloat16 checkpoint")
    return Coverage(
        {name: by_name[name] for name in parameters}, dict(Counter(reason for reason in reasons.values() if reason))
    )


def _listing(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def stored_dtype(tensors: Iterable[TensorEntry]) -> str:
    """The dtype of a checkpoint: that of most of its bytes among those a graph can have; float32 if it has none of them."""
    total: Counter[str] = Counter()
    for entry in tensors:
        if entry.dtype in _DTYPES:
            total[entry.dtype] += entry.nbytes
    return _DTYPES[total.most_common(1)[0][0]] if total else "float32"


def link_weights(coverage: Coverage, dtype: str) -> tuple[Path, dict[str, TensorEntry]]:
    """The folder of the checkpoint's real weight files, and each parameter's place there.

    Raises:
        CheckpointError: linking needs no conversion and one folder.
    """
    converted = sorted(name for name, entry in coverage.used.items() if _DTYPES[entry.dtype] != dtype)
    if converted:
        have = _DTYPES[coverage.used[converted[0]].dtype]
        raise CheckpointError(f"--weights link cannot convert {have} weights to {dtype}; use --dtype {have} or --weights copy")
    folders = sorted({str(entry.file.parent) for entry in coverage.used.values()})
    if len(folders) > 1:
        raise CheckpointError(
            f"--weights link needs all weight files in one folder, not in {', '.join(folders)}; use --weights copy"
        )
    return Path(folders[0]), coverage.used


def copied_size(coverage: Coverage, dtype: str) -> int:
    """Bytes of the tensors after conversion to ``dtype``."""
    item = ITEM_SIZE[STORED[dtype]]
    return sum(entry.nbytes // ITEM_SIZE[entry.dtype] * item for entry in coverage.used.values())


def copy_weights(coverage: Coverage, dtype: str, folder: Path, progress: Progress) -> tuple[dict[str, TensorEntry], str]:
    """Write all used tensors, converted to ``dtype``, as one safetensors file in ``folder``.

    Memory stays bounded by a chunk, not by a tensor.  Returns each parameter's place and the file's sha256.

    Raises:
        OutputError: no room on the disk.
        CheckpointError: a value that ``dtype`` cannot hold, or a file that cannot be read.
    """
    stored = STORED[dtype]
    item = ITEM_SIZE[stored]
    layout = [
        (name, stored, entry.shape, entry.nbytes // ITEM_SIZE[entry.dtype] * item) for name, entry in coverage.used.items()
    ]
    header = encode_header(layout)
    needed = len(header) + sum(nbytes for *_, nbytes in layout)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"no room for the weights: {needed >> 20} MB needed, {free >> 20} MB free; free space or use --weights link"
        )
    target = folder / COPY_FILE
    digest = hashlib.sha256(header)
    placed: dict[str, TensorEntry] = {}
    position = len(header)
    try:
        with target.open("wb") as stream:
            stream.write(header)
            for (name, _, shape, nbytes), entry in zip(layout, coverage.used.values(), strict=True):
                for block in _converted(entry, dtype):
                    stream.write(block)
                    digest.update(block)
                    progress(len(block))
                placed[name] = TensorEntry(name, target, stored, shape, position, nbytes)
                position += nbytes
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"the disk of {folder} is full; free {needed >> 20} MB or use --weights link") from None
        raise OutputError(f"cannot write {target}: {error.strerror}") from None
    return placed, digest.hexdigest()


def _converted(entry: TensorEntry, dtype: str) -> Iterator[memoryview]:
    source, goal = _numpy_dtype(_DTYPES[entry.dtype]), _numpy_dtype(dtype)
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        left = entry.nbytes
        while left:
            wanted = min(left, _CHUNK * source.itemsize)
            raw = stream.read(wanted)
            if len(raw) != wanted:
                raise CheckpointError(f"{entry.file} ended early in {entry.name}; download or copy it again")
            left -= len(raw)
            yield _convert(np.frombuffer(raw, source), goal, entry.name)


def _convert(block: np.ndarray, goal: np.dtype, name: str) -> memoryview:
    if block.dtype != goal:
        with np.errstate(over="ignore"):
            result = block.astype(goal)
        if goal.itemsize < 4 and np.any(np.isfinite(block) & ~np.isfinite(result)):
            raise CheckpointError(f"{name} has values that {goal.name} cannot hold; use --dtype float32 or bfloat16")
        block = result
    return memoryview(block.view(np.uint8).data)


def _numpy_dtype(dtype: str) -> np.dtype:
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return np.dtype(dtype)


def bind(parameters: list[ir.Value], placed: Mapping[str, TensorEntry]) -> None:
    """Give every parameter its external data; the file is named without folder, as ONNX wants it."""
    import onnx_ir as ir

    for parameter in parameters:
        entry = placed[parameter.name]
        parameter.const_value = ir.ExternalTensor(
            entry.file.name, entry.offset, entry.nbytes, parameter.dtype, shape=parameter.shape, name=parameter.name
        )


def parameter_shapes(models: Mapping[str, Any], parameters: Callable[[Any], list[ir.Value]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape over all graphs, in graph order; graphs may share parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for model in models.values():
        for parameter in parameters(model):
            shapes.setdefault(parameter.name, tuple(int(dim) for dim in parameter.shape))
    return shapes
