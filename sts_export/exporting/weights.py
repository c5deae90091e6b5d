"""Bind checkpoint tensors to graph parameters: match, then link in place or copy in a bounded stream."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sts_export.checkpoints.merged import blocks
from sts_export.checkpoints.safetensors_header import ITEM_SIZE, TensorEntry, encode_header
from sts_export.dtypes import DTYPES, ELEMENT_TYPES, numpy_dtype
from sts_export.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.checkpoints.checkpoint import Checkpoint
    from sts_export.lowering.quantized_graphs import QuantizedWeight

COPY_FILE = "weights.safetensors"
STORED: dict[str, str] = {dtype: ELEMENT_TYPES[dtype].safetensors for dtype in DTYPES}
_DTYPES = {stored: dtype for dtype, stored in STORED.items()}
_CHUNK = 1 << 20  # elements converted at a time: bounds memory whatever a tensor's size

ChunkProgress = Callable[[int], None]


@dataclass(frozen=True)
class Coverage:
    """How the checkpoint maps onto the graphs.

    used: parameter name -> stored tensor; unused: reason -> number of tensors deliberately left out; own: parameter name ->
    tensor of another file, which stays float32.
    """

    used: dict[str, TensorEntry]
    unused: dict[str, int]
    own: dict[str, TensorEntry] = field(default_factory=dict)


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
    """The folder of the checkpoint's real weight files, and each parameter's place there; ``own`` ones where they lie so, too.

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
    folder = Path(folders[0])
    own = {name: entry for name, entry in coverage.own.items() if entry.file.parent == folder and entry.dtype == "F32"}
    return folder, {**coverage.used, **own}


@dataclass(frozen=True)
class _Output:
    """A tensor to be written: its stored type, and what yields its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    blocks: Callable[[], Iterator[memoryview]]


def _outputs(coverage: Coverage, dtype: str, quantized: Sequence[QuantizedWeight]) -> list[_Output]:
    """float32 first, then converted tensors and quantized ones: so everything in the file stays aligned to its item size."""
    replaced = {weight.source for weight in quantized}
    outputs = [_output(name, entry, "float32") for name, entry in coverage.own.items()]
    outputs += [_output(name, entry, dtype) for name, entry in coverage.used.items() if name not in replaced]
    if quantized:
        from sts_export.exporting.quantized_weights import quantized_blocks, quantized_layout

        outputs += [
            _Output(
                tensor.name,
                tensor.dtype,
                tensor.shape,
                tensor.nbytes,
                partial(quantized_blocks, coverage.used[tensor.weight.source], tensor),
            )
            for tensor in quantized_layout(quantized)
        ]
    return outputs


def _output(name: str, entry: TensorEntry, dtype: str) -> _Output:
    stored = STORED[dtype]
    nbytes = entry.nbytes // ITEM_SIZE[entry.dtype] * ITEM_SIZE[stored]
    return _Output(name, stored, entry.shape, nbytes, partial(_converted, entry, dtype))


def copied_size(coverage: Coverage, dtype: str, quantized: Sequence[QuantizedWeight] = ()) -> int:
    """Bytes of the tensors after conversion to ``dtype``, or quantization."""
    return sum(output.nbytes for output in _outputs(coverage, dtype, quantized))


def copy_weights(
    coverage: Coverage, dtype: str, folder: Path, progress: ChunkProgress, quantized: Sequence[QuantizedWeight] = ()
) -> tuple[dict[str, TensorEntry], str]:
    """Write all used tensors as one safetensors file in ``folder``: converted to ``dtype``, or quantized.

    Memory stays bounded by a chunk, not by a tensor.  Returns each stored tensor's place and the file's sha256.

    Raises:
        OutputError: no room on the disk.
        CheckpointError: a value that ``dtype`` cannot hold, or a file that cannot be read.
    """
    outputs = _outputs(coverage, dtype, quantized)
    header = encode_header([(output.name, output.dtype, output.shape, output.nbytes) for output in outputs])
    needed = len(header) + sum(output.nbytes for output in outputs)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"no room for the weights: {needed >> 20} MB needed, {free >> 20} MB free; free space or use --weights link"
        )
    target = folder / COPY_FILE
    placed: dict[str, TensorEntry] = {}
    position = len(header)
    try:
        with target.open("wb", buffering=0) as stream, _Hasher() as hasher:
            stream.write(header)
            hasher.update(memoryview(header))
            for output in outputs:
                for block in output.blocks():
                    hasher.update(block)
                    _write_all(stream, block)
                    progress(len(block))
                placed[output.name] = TensorEntry(output.name, target, output.dtype, output.shape, position, output.nbytes)
                position += output.nbytes
            return placed, hasher.hexdigest()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"the disk of {folder} is full; free {needed >> 20} MB or use --weights link") from None
        raise OutputError(f"cannot write {target}: {error.strerror}") from None


class _Hasher:
    """sha256 in a thread of its own: a block is hashed while it is written and the next one is read."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def __enter__(self) -> _Hasher:
        return self

    def update(self, block: memoryview) -> None:
        self._wait()  # never more than one block behind
        self._last = self._thread.submit(self._digest.update, block)

    def hexdigest(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def _write_all(stream: RawIOBase, block: memoryview) -> None:
    while block:
        block = block[stream.write(block) or 0 :]


def _converted(entry: TensorEntry, dtype: str) -> Iterator[memoryview]:
    goal = numpy_dtype(dtype)
    for block in blocks(entry, _CHUNK):
        yield _convert(block, goal, entry.name)


def same_content(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two stored tensors have the same shape and the same numbers, be it in different types; memory stays bounded.

    Tensors of a type that no graph has never do.

    Raises:
        CheckpointError: a file that ends early.
    """
    if one.shape != other.shape or not {one.dtype, other.dtype} <= _DTYPES.keys():
        return False
    blocks = zip(_converted(one, "float32"), _converted(other, "float32"), strict=True)
    return all(np.array_equal(np.frombuffer(a, np.float32), np.frombuffer(b, np.float32)) for a, b in blocks)


def _convert(block: np.ndarray, goal: np.dtype, name: str) -> memoryview:
    if block.dtype != goal:
        with np.errstate(over="ignore"):
            result = block.astype(goal)
        if goal.itemsize < 4 and np.any(np.isfinite(block) & ~np.isfinite(result)):
            raise CheckpointError(f"{name} has values that {goal.name} cannot hold; use --dtype float32 or bfloat16")
        block = result
    return memoryview(block.view(np.uint8).data)


def bind(parameters: list[ir.Value], placed: Mapping[str, TensorEntry]) -> None:
    """Give every parameter its external data; the file is named without folder, as ONNX wants it."""
    import onnx_ir as ir

    for parameter in parameters:
        entry = placed[parameter.name]
        parameter.const_value = ir.ExternalTensor(
            entry.file.name, entry.offset, entry.nbytes, parameter.dtype, shape=parameter.shape, name=parameter.name
        )


def embed(parameters: list[ir.Value], entries: Mapping[str, TensorEntry]) -> None:
    """Put the data of these parameters into their graph, as float32."""
    import onnx_ir as ir

    for parameter in parameters:
        if entry := entries.get(str(parameter.name)):
            data = np.frombuffer(b"".join(_converted(entry, "float32")), np.float32).reshape(entry.shape)
            parameter.const_value = ir.tensor(data, name=parameter.name)


def parameter_shapes(models: Mapping[str, Any], parameters: Callable[[Any], list[ir.Value]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape over all graphs, in graph order; graphs may share parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for model in models.values():
        for parameter in parameters(model):
            shapes.setdefault(parameter.name, tuple(int(dim) for dim in parameter.shape))
    return shapes
