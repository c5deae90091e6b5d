"""Builds the imitation for one onnxruntime-gpu: stubs of all it asks for, and runtime.cpp and libraries.cpp where that is not enough."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from scripts.cuda_imitation.failures import ImitationError

PROVIDER = Path("onnxruntime/capi/libonnxruntime_providers_cuda.so")
_SOURCES = Path(__file__).parent
# Loaded by name while it runs; the rest stands in the provider's table of needed libraries.
_LOADED_LATER = ("libcudnn.so.9", "libcudnn.so", "libcufft.so.12", "libnvrtc.so.13")
_OURS = re.compile(r"(__)?(cuda|cublas|cublasLt|cudnn|cufft|curand|nvrtc|cu)[A-Z]\w*$")
# Functions that are looked up by name are strings between zeros.
_LOOKED_UP = re.compile(rb"(?<=\0)(?:cudnn|cufft|nvrtc)[A-Z][A-Za-z0-9_]+(?=\0)")


def build(packages: Path, folder: Path) -> list[str]:
    """Write the imitation into ``folder``.

    Args:
        packages: where onnxruntime-gpu is unpacked, as ``pip install --target`` leaves it.

    Returns:
        The names of the libraries, to be loaded before ONNX Runtime is.

    Raises:
        ImitationError: no onnxruntime-gpu there, or no compiler.
    """
    provider = packages / PROVIDER
    if not provider.is_file():
        raise ImitationError(f"no onnxruntime-gpu in {packages}: pip install --no-deps --target {packages} onnxruntime-gpu")
    folder.mkdir(parents=True, exist_ok=True)
    stubs, library = folder / "stubs.cpp", folder / "libimitation.so"
    stubs.write_text(_stubs(provider))
    compiled = [stubs, *sorted(_SOURCES.glob("*.cpp"))]
    flags = ["-std=c++17", "-O1", "-Wall", "-fPIC", "-shared", "-Wl,--no-undefined"]
    _output(["g++", *flags, f"-I{_SOURCES}", *map(str, compiled), "-o", str(library)])
    names = [*_needed(provider), *_LOADED_LATER]
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(library.name)
    return names


def _needed(provider: Path) -> list[str]:
    """File names of the CUDA libraries that the provider is linked with."""
    found = re.findall(r"\(NEEDED\).*\[(.*)\]", _output(["readelf", "--dynamic", "--wide", str(provider)]))
    return [name for name in found if name.startswith(("libcu", "libnv"))]


def _stubs(provider: Path) -> str:
    """C++: every function returns success; one that creates something hands out an address."""
    undefined = _output(["nm", "--dynamic", "--undefined-only", "--format=posix", str(provider)])
    names = {line.split()[0].split("@")[0] for line in undefined.splitlines()}
    names |= {name.decode() for name in _LOOKED_UP.findall(provider.read_bytes())}
    lines = ['#include "log.h"', "#define WEAK STS_EXPORTED __attribute__((weak))"]
    for name in sorted(filter(_OURS.match, names)):
        if "Create" in name:
            lines.append(f"WEAK int {name}(void **made) {{ return *made = imitation::newHandle(), 0; }}")
        else:
            lines.append(f'WEAK int {name}() {{ return imitation::record(imitation::kCall, "{name}"), 0; }}')
    return "\n".join(lines) + "\n"


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise ImitationError(f"{command[0]} was not found; install a C++ compiler (Debian, Ubuntu: apt-get install g++)")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImitationError(f"{command[0]} failed: {' '.join(done.stderr.split())[:500]}")
    return done.stdout
