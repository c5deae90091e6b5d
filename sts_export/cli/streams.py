"""Standard output and error as callers leave them: closed, full, without a reader, or unable to write most characters."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def open_streams() -> None:
    """Have both streams, and let them take any text: what an encoding lacks is written as an escape such as ``\\xe9``.

    What is closed goes nowhere.  Its descriptor is taken, too: the next file that is opened would get it, and what a library
    reports on descriptor 2 would be written into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout, sys.stderr = _readable(sys.stdout), _readable(sys.stderr)


def _readable(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if isinstance(stream, io.TextIOWrapper):  # else it is whatever a caller of ``main`` has put there
        stream.reconfigure(errors="backslashreplace")
    return stream


def say(line: str) -> None:
    """One line on standard error, if anything can be written there; what was done does not depend on it."""
    with contextlib.suppress(OSError, ValueError):
        print(" ".join(line.split()), file=sys.stderr, flush=True)


def close_streams() -> None:
    """Write what is still buffered, or drop it: Python would complain about it at exit, and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
