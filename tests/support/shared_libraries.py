"""Shared libraries that stand in for those of plugins/: compiled from a few lines of C, or written by hand as headers alone."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

X86_64, AARCH64 = 62, 183  # e_machine
THIS_MACHINE = {"x86_64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}.get(platform.machine().lower(), X86_64)
OTHER_MACHINE = AARCH64 if THIS_MACHINE == X86_64 else X86_64

# ONNX Runtime asks for this symbol; a null status is success, and this one registers nothing.
REGISTERS = "void *RegisterCustomOps(void *options, const void *api) { return 0; }"


def operators_source(version: int = 1, api: int = 18, registers: str = REGISTERS, refusal: str = "0") -> str:
    """Of a library with the functions of libsts_onnxruntime.so."""
    return (
        f"int stsOperatorsVersion(void) {{ return {version}; }}\n"
        f"int stsOnnxRuntimeApiVersion(void) {{ return {api}; }}\n"
        f"const char *stsDeviceRefusal(void) {{ return {refusal}; }}\n{registers}\n"
    )


def compiled(source: str, file: Path, *options: str) -> Path:
    """A shared library for this machine; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is absent")
    file.parent.mkdir(parents=True, exist_ok=True)
    code = file.with_suffix(".c")
    code.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", file, code, *options], check=True, capture_output=True)
    code.unlink()
    return file


def headers_only(exports: Sequence[str], machine: int = THIS_MACHINE, end: bytes = b"") -> bytes:
    """An ELF file that exports names and has no code; from the System V ABI."""
    names = b"\x00" + b"".join(name.encode() + b"\x00" for name in exports)
    symbols, at = bytes(24), 1
    for name in exports:
        symbols += struct.pack("<IBBHQQ", at, 1 << 4 | 2, 0, 1, 0, 0)  # a global function of the first section
        at += len(name) + 1
    symbols_at, names_at = 64, 64 + len(symbols)
    sections_at = names_at + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\x00") + struct.pack(
        "<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, sections_at, 0, 64, 56, 0, 64, 3, 0
    )
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, symbols_at, len(symbols), 2, 1, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return header + symbols + names + sections + end
