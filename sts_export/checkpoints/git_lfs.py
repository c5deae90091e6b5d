"""Git LFS pointers: small text files in place of large ones, which a clone without git-lfs leaves behind.

Format: the first line is ``version https://git-lfs…/spec/v1``, then the sha256 and the size of the file meant.
"""

from __future__ import annotations

from pathlib import Path

from sts_export.errors import CheckpointError

_START = b"version https://git-lfs"


def refuse_pointer(file: Path) -> None:
    """Say so where ``file`` is a pointer; a file that cannot be read is left to whoever reads it.

    Raises:
        CheckpointError: it is a pointer.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_START))
    except OSError:
        return
    if start == _START:
        raise CheckpointError(f"{file} is a git-lfs pointer instead of the file itself; run git lfs pull in its folder")
