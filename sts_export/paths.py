"""Paths as users type them."""

from __future__ import annotations

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
        shown = str(text) if len(str(text)) <= 80 else str(text)[:77] + "..."
        raise RequestError(f"path {shown!r} cannot be used ({reason}); check it") from None
    return path
