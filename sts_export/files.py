"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PARTS = ".*.part"


def replace_file(file: Path, content: Any) -> None:
    """Write a buffer beside ``file``, then rename it, so that no half-written file bears the name, and whoever has the old
    one open or mapped keeps it."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(memoryview(content))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
