"""Pictures on the server's own disk, inside one folder."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from sts_export.errors import ImageError
from sts_export.serving.pictures.lines import INSTEAD, shown, too_large
from sts_export.serving.pictures.rules import PictureRules

_FILE = re.compile(r"file://(?:localhost)?(/[^?#]*)", re.IGNORECASE | re.DOTALL)
# A pipe without a writer must not block, and a terminal must not become the server's own.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


def file_bytes(url: str, rules: PictureRules) -> bytes:
    """Bytes of a regular file inside ``rules.folder``; ``url`` is ``file:///`` and its absolute path, percent-encoded.

    Links inside the folder are followed and have to stay in it.  One line stands for everything that is not there, outside or
    no file, so that nobody can ask which files a server has.  Who may write into the folder is trusted.

    Raises:
        ImageError: no files are read, the file is not there, or it is too large.
    """
    if rules.folder is None:
        raise ImageError(f"this server reads no files; {INSTEAD}")
    try:
        found = _read(_path(url, rules.folder), rules.most_bytes + 1)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a circle of links
        raise ImageError(f"{shown(url)} is no file in the server's folder of pictures; check the path") from None
    if len(found) > rules.most_bytes:
        raise too_large(rules.most_bytes)
    return found


def _path(url: str, folder: Path) -> Path:
    """Raises OSError, RuntimeError or ValueError: not there, or not inside."""
    match = _FILE.fullmatch(url)
    if match is None:
        raise ValueError
    asked, inside = Path(os.fsdecode(unquote_to_bytes(match[1]))), folder.resolve()
    # First by name alone: the disk's answer about what is outside would take another time.
    if ".." in asked.parts or not any(asked.is_relative_to(spelled) for spelled in (folder.absolute(), inside)):
        raise ValueError
    path = asked.resolve(strict=True)
    if not path.is_relative_to(inside):
        raise ValueError
    return path


def _read(path: Path, most_bytes: int) -> bytes:
    with open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError
        return stream.read(most_bytes)
