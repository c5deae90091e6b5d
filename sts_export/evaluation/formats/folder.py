"""Where the files of a benchmark lie in the folder that the user gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sts_export.errors import RequestError


def find(data: Path, names: Sequence[str], what: str) -> Path:
    """The first of these files or folders that is there.

    Args:
        data: folder of the user.
        names: relative to it, the published one first.
        what: it is, for the message.

    Raises:
        RequestError: none of them is.
    """
    if not data.is_dir():
        raise RequestError(f"{data} is not a folder; give the one that holds the benchmark's files (--data)")
    for name in names:
        if (data / name).exists():
            return data / name
    raise RequestError(f"{data} has no {what}: put {' or '.join(names)} there, or give another folder (--data)")


def picture_folder(data: Path, names: Sequence[str]) -> Path:
    """The first of these folders that is there, or else ``data`` itself; a picture that is missing is found out later."""
    return next((data / name for name in names if (data / name).is_dir()), data)


def digest_of(files: Iterable[Path]) -> str:
    """sha256 over the contents of some files.

    Raises:
        RequestError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise RequestError(f"{file} cannot be read ({error.strerror}); check the path and its permissions") from None
    return digest.hexdigest()
