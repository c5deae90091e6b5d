"""Linux shared libraries, read without loading them: what is loaded and is not whole kills the process.

Source: System V ABI, ELF header, section header and symbol table; e_machine as registered there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MACHINES = {62: "x86-64", 183: "aarch64"}  # those that the libraries are built for
_64_BIT, _LITTLE_ENDIAN, _SHARED = 2, 1, 3  # ELFCLASS64, ELFDATA2LSB, ET_DYN
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NO_BITS, _DYNAMIC_SYMBOLS = 8, 11  # SHT_NOBITS takes no room in the file; SHT_DYNSYM
_UNDEFINED = 0  # SHN_UNDEF: the symbol is imported
_GLOBAL, _WEAK = 1, 2  # STB_GLOBAL, STB_WEAK


@dataclass(frozen=True)
class _Range:
    """Bytes of the file; ``kind`` and ``link`` are a section's."""

    start: int
    size: int
    kind: int = 0
    link: int = 0


def machine_of(library: Path) -> str | None:
    """``x86-64`` or ``aarch64``; None for what is no shared library of either.

    Raises:
        OSError: it cannot be read.
    """
    with library.open("rb") as stream:
        header = stream.read(20)
    if len(header) < 20 or header[:6] != b"\x7fELF" + bytes([_64_BIT, _LITTLE_ENDIAN]):
        return None
    if int.from_bytes(header[16:18], "little") != _SHARED:
        return None
    return MACHINES.get(int.from_bytes(header[18:20], "little"))


def exported_names(library: Path) -> frozenset[str] | None:
    """Functions and data that a shared library offers; None if it is not whole: the file ends before what its headers place.

    Raises:
        OSError: it cannot be read.
    """
    content = library.read_bytes()
    try:
        sections = _whole_sections(content)
        return frozenset(_exported(content, sections))
    except (struct.error, ValueError, IndexError, OverflowError):
        return None


def _whole_sections(content: bytes) -> list[_Range]:
    """The sections.

    Raises:
        ValueError, struct.error: one of them, or a segment, or a table ends behind the file.
    """
    fields = _HEADER.unpack_from(content)
    segments_at, sections_at, segment_size, segments, section_size, sections = *fields[5:7], *fields[9:13]
    loaded, placed = [], []
    for number in range(segments):
        _, _, start, _, _, size, _, _ = _SEGMENT.unpack_from(content, segments_at + number * segment_size)
        loaded.append(_Range(start, size))
    for number in range(sections):
        entry = _SECTION.unpack_from(content, sections_at + number * section_size)
        kind, start, size, link = entry[1], entry[4], entry[5], entry[6]
        placed.append(_Range(start, 0 if kind == _NO_BITS else size, kind, link))
    if any(part.start + part.size > len(content) for part in (*loaded, *(one for one in placed if one.size))):
        raise ValueError("a part ends behind the file")
    return placed


def _exported(content: bytes, sections: list[_Range]) -> Iterator[str]:
    for table in sections:
        if table.kind != _DYNAMIC_SYMBOLS:
            continue
        names = sections[table.link]
        for name, info, _, section, _, _ in _SYMBOL.iter_unpack(content[table.start : table.start + table.size]):
            if section != _UNDEFINED and info >> 4 in (_GLOBAL, _WEAK):
                start = names.start + name
                yield content[start : content.index(b"\x00", start)].decode("ascii", "replace")
