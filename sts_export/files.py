"""Files that are whole or not there.

They are written under another name beside their place, then renamed: no half-written file bears the name, and whoever has the
old one open or mapped keeps it.  A process that is killed leaves files of the name PARTS.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PARTS = ".*.part"


@contextmanager
def new_file(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content becomes ``file`` at the end of the block, unless that raises.

    Raises:
        OSError: the file system refuses.
    """
    file = Path(os.path.realpath(file))  # what a link leads to, which stays a link
    part = part_of(file)
    try:
        with part.open("w+b") as stream:
            yield stream
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def replace_file(file: Path, content: Any) -> None:
    """Write a buffer: bytes, or whatever has a memoryview."""
    with new_file(file) as stream:
        stream.write(memoryview(content))


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """All of them, once there was room for all.  What is the same already keeps its time: what was made of it stays valid."""
    places = {Path(os.path.realpath(file)): data for file, data in contents.items()}
    changed = {file: data for file, data in places.items() if not file.is_file() or file.read_bytes() != data}
    try:
        for file, data in changed.items():
            part_of(file).write_bytes(data)
        for file in changed:
            part_of(file).replace(file)
    finally:
        for file in changed:
            part_of(file).unlink(missing_ok=True)


def replace_json(file: Path, content: Any, indent: int = 1) -> None:
    """A JSON text that ends with a newline."""
    replace_file(file, (json.dumps(content, indent=indent) + "\n").encode())


def part_of(file: Path) -> Path:
    """The name under which this thread writes a file: two threads that write the same one must not share a part."""
    return file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.part")
