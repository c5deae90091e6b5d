"""Builds the imitation for one onnxruntime-gpu.

All that its provider asks for is a stub that returns success; native/ has what needs more than that, and goes before a stub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.cuda_imitation.counts import library_work
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.programs import output

DEFAULT_PACKAGES = Path("build/onnxruntime-gpu")
PROVIDER = Path("onnxruntime/capi/libonnxruntime_providers_cuda.so")
LIBRARY = "libimitation.so"
_SOURCES = Path(__file__).parent / "native"
# Loaded by name while it runs; the rest stands in the provider's table of needed libraries.
_LOADED_LATER = ("libcudnn.so.9", "libcudnn.so", "libcufft.so.12", "libnvrtc.so.13")
_OURS = re.compile(r"(__)?(cuda|cublas|cublasLt|cudnn|cufft|curand|nvrtc|cu)[A-Z]\w*$")
# Functions that are looked up by name are strings between zeros.
_LOOKED_UP = re.compile(rb"(?<=\0)(?:cudnn|cufft|nvrtc)[A-Z][A-Za-z0-9_]+(?=\0)")


def build(packages: Path, folder: Path, clients: Sequence[Path] = ()) -> list[str]:
    """Write the imitation into ``folder``.

    Args:
        packages: where onnxruntime-gpu is unpacked, as ``pip install --target`` leaves it.
        clients: other libraries that call the CUDA runtime as a shared library.

    Returns:
        The file names of the libraries, to be loaded before ONNX Runtime is.

    Raises:
        ImitationError: no onnxruntime-gpu there, or no compiler.
    """
    provider = packages / PROVIDER
    if not provider.is_file():
        raise ImitationError(f"no onnxruntime-gpu in {packages}: scripts/cuda_imitation/fetch_onnxruntime_gpu {packages}")
    functions = {name for library in (provider, *clients) for name in _undefined(library)}
    compile_library(functions | _looked_up(provider), folder)
    names = [*_needed(provider), *_LOADED_LATER]
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(LIBRARY)
    return names


def compile_library(functions: Iterable[str], folder: Path) -> Path:
    """The imitation with stubs of these functions, as one file.

    Raises:
        ImitationError: no compiler, or it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stubs, library = folder / "stubs.cpp", folder / LIBRARY
    stubs.write_text(_stubs(functions))
    sources = [str(path) for path in (stubs, *sorted(_SOURCES.glob("*.cpp")))]
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-fPIC", "-shared", "-Wl,--no-undefined", f"-I{_SOURCES}"]
    output(["g++", *flags, *sources, "-o", str(library)])
    return library


def _needed(provider: Path) -> list[str]:
    """File names of the CUDA libraries that the provider is linked with."""
    found = re.findall(r"\(NEEDED\).*\[(.*)\]", output(["readelf", "--dynamic", "--wide", str(provider)]))
    return [name for name in found if name.startswith(("libcu", "libnv"))]


def _undefined(library: Path) -> set[str]:
    """Functions of CUDA that a library is linked with."""
    listed = output(["nm", "--dynamic", "--undefined-only", "--format=posix", str(library)])
    return set(filter(_OURS.match, (line.split()[0].split("@")[0] for line in listed.splitlines())))


def _looked_up(library: Path) -> set[str]:
    """Functions that it looks up by name while it runs."""
    return {name.decode() for name in _LOOKED_UP.findall(library.read_bytes())}


def _stubs(functions: Iterable[str]) -> str:
    """C++: every function returns success; one that creates something hands out an address, one that computes is logged."""
    lines = ['#include "log.h"', "#define WEAK STS_EXPORTED __attribute__((weak))"]
    for name in sorted(functions):
        if "Create" in name:
            lines.append(f"WEAK int {name}(void **made) {{ return *made = imitation::newHandle(), 0; }}")
        elif library_work(name):
            lines.append(f'WEAK int {name}() {{ return imitation::record(imitation::kCall, "{name}"), 0; }}')
        else:
            lines.append(f"WEAK int {name}() {{ return 0; }}")
    return "\n".join(lines) + "\n"
