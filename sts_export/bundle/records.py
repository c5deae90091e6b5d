"""What a manifest says of files: what the bundle was made from, what is in it, and whether that is unaltered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sts_export.errors import BundleError, CheckpointError

# Loading must stay instant: larger files are checked by size, and by sha256 only when asked for.
_HASH_ON_LOAD = 64 << 20


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: name relative to its folder, size in bytes, sha256 of the content.

    For linked weights ``sha256`` is None and ``fingerprint`` stands in: header and samples of the data.
    """

    file: str
    size: int
    sha256: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Weights:
    """``copy``: files in the bundle; ``link``: files in ``folder``, the checkpoint's own."""

    mode: Literal["copy", "link"]
    files: tuple[FileRecord, ...]
    folder: str | None = None


@dataclass(frozen=True)
class MergedAdapter:
    """The LoRA adapter in ``folder``, merged into ``tensors`` tensors of the model in ``base``.

    Tokenizer and image processor are those in ``processor``.
    """

    folder: str
    base: str
    tensors: int
    processor: str


@dataclass(frozen=True)
class SelectorSource:
    """The file that the weights of a trained selector are from."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """What a bundle was made from.

    Args:
        model: as it was asked for.
        folder: the checkpoint's, or the adapter's.
        config_sha256: of the checkpoint's config.json.
        weights: fingerprint of each of its weight files, by name.
        selector: of a stage 1 with weights of its own.
    """

    model: str
    folder: str
    config_sha256: str
    weights: dict[str, str]
    adapter: MergedAdapter | None = None
    selector: SelectorSource | None = None


def record_file(file: Path, folder: Path | None = None) -> FileRecord:
    """Size and sha256 of a finished file; its name is relative to ``folder``, by default the one it lies in."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    name = file.relative_to(folder or file.parent).as_posix()
    return FileRecord(name, file.stat().st_size, digest.hexdigest())


def check_file(folder: Path, record: FileRecord, *, check_all: bool) -> None:
    """Whether the file is there and unaltered.

    Args:
        check_all: hash large files, too.

    Raises:
        BundleError: it is not.
    """
    file = folder / record.file
    try:
        size = file.stat().st_size
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise BundleError(f"{file} is missing; restore it or export the bundle again") from None
    if size != record.size:
        raise BundleError(f"{file} was altered: {size} bytes instead of {record.size}; export the bundle again")
    if record.fingerprint is not None:
        from sts_export.checkpoints.safetensors_header import read_header

        try:
            same = read_header(file)[1] == record.fingerprint
        except CheckpointError:
            same = False
        if not same:
            raise BundleError(f"{file} was altered since the export that links to it; export the bundle again")
    if record.sha256 is not None and (check_all or size <= _HASH_ON_LOAD) and record_file(file).sha256 != record.sha256:
        raise BundleError(f"{file} was altered: its sha256 differs from the manifest; export the bundle again")
