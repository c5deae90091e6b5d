"""Weights of a trained selector: a .safetensors file beside the checkpoint, for a stage that has weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sts_export.checkpoints.merged import FLOATS, blocks
from sts_export.checkpoints.safetensors_header import TensorEntry, fingerprint, read_header
from sts_export.errors import CheckpointError
from sts_export.paths import user_path

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = 1 << 20  # numbers looked at a time
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class SelectorWeights:
    """An opened file.

    Args:
        file: with symbolic links resolved.
        sha256: of the whole file.
        header: its fingerprint, as linked weights have one (:func:`read_header`).
        tensors: by name.
    """

    file: Path
    sha256: str
    header: str
    tensors: dict[str, TensorEntry]


def open_selector_weights(file: str | Path, own_weights: Callable[[int], Shapes], width: int) -> SelectorWeights:
    """Weights for vision features of ``width``.

    Args:
        own_weights: width -> names and shapes.

    Raises:
        RequestError: the path cannot be used.
        CheckpointError: no such file, no safetensors file, damaged, of another model, or with numbers that are not finite.
    """
    path = user_path(file).resolve()
    if not path.is_file():
        raise CheckpointError(f"the selector's weights {path} are no file; check the path given with --selector-weights")
    entries, header = _read(path)
    _check_shapes(path, {name: entry.shape for name, entry in entries.items()}, own_weights, width)
    for name, entry in entries.items():
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{name} in {path} is {entry.dtype}; store the selector as float32, float16 or bfloat16")
        if not all(np.isfinite(block.astype(np.float32)).all() for block in blocks(entry, _BLOCK)):
            raise CheckpointError(f"{name} in {path} holds NaN or infinity; take another state of the training")
    return SelectorWeights(path, fingerprint(path), header, entries)


def _read(path: Path) -> tuple[dict[str, TensorEntry], str]:
    try:
        return read_header(path)
    except CheckpointError:
        with path.open("rb") as stream:
            start = stream.read(4)
        if start.startswith(_PICKLED):
            raise CheckpointError(f"{path} is a pickle, which is never loaded; save the selector as safetensors") from None
        raise


def _check_shapes(path: Path, found: Shapes, own_weights: Callable[[int], Shapes], width: int) -> None:
    expected = own_weights(width)
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; give the weights of a selector")
    if left := sorted(found.keys() - expected.keys()):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(f"{path} has {left[0]}{more}, which no selector has; give the weights of a selector alone")
    if found == dict(expected):
        return
    for other in sorted({size for shape in found.values() for size in shape}):
        if found == dict(own_weights(other)):
            raise CheckpointError(
                f"{path} is for vision features of width {other}, those of this model have {width}; "
                "give the selector that was trained for this model"
            )
    name = next(name for name, shape in expected.items() if found[name] != shape)
    raise CheckpointError(
        f"{name} in {path} is {list(found[name])} instead of {list(expected[name])}; "
        "give the selector that was trained for this model"
    )
