"""The header of a Linux shared library: what it is for, without loading it.

Source: System V ABI, ELF header; e_machine as registered there.
"""

from __future__ import annotations

from pathlib import Path

MACHINES = {62: "x86-64", 183: "aarch64"}  # those that TensorRT runs on
_64_BIT, _LITTLE_ENDIAN, _SHARED = 2, 1, 3  # ELFCLASS64, ELFDATA2LSB, ET_DYN


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
