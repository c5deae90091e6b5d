"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path

from sts_export.errors import RequestError


def user_path(text: str | Path) -> Path:
    """``text`` with ``~`` expanded; it need not exist.

    Raises:
        RequestError: empty, of an unknown user, too long, or otherwise nothing the system takes for a path.
    """
    if not str(text):
        raise RequestError("an empty path was given; give the name of a file or folder")
    try:
        path = Path(text).expanduser()
        path.exists()  # refuses names that no system call takes
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"path {_shown(text)} cannot be used ({reason}); check it") from None
    return path


def library_path(text: str | Path) -> Path:
    """As :func:`user_path`, for folders that are opened by tokenizers, ONNX Runtime and TensorRT: they take UTF-8 only.

    Raises:
        RequestError: as there, or bytes in the whole path that are not UTF-8, which Python keeps as lone surrogates.
    """
    path = user_path(text)
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        raise RequestError(f"path {_shown(text)} cannot be used (it or a folder above it is not UTF-8); rename that") from None
    return path


def _shown(text: str | Path) -> str:
    return repr(str(text) if len(str(text)) <= 80 else str(text)[:77] + "...")
