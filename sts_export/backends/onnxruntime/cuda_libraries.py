"""Load CUDA and cuDNN as pip installs them, wherever on Python's path they lie.

ONNX Runtime's own ``preload_dlls`` looks beside onnxruntime only.  Where the ``nvidia`` packages lie elsewhere (PyTorch's in
the system's folder, onnxruntime-gpu in another), it finds none.  Once a library is in the process, all who name it get it.
Source: onnxruntime/__init__.py (preload_dlls) for the names.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Each before those that need it; with CUDA's version, or with one of its own.
_OF_CUDA = ("cudart", "cublasLt", "cublas", "nvrtc")
_OTHERS = ("curand", "cufft", "cudnn")


def load_cuda_libraries(cuda_version: str) -> tuple[Path, ...]:
    """Load the first of each name that is found; what does not load is left to ONNX Runtime, which says so.

    Folders with this CUDA go before others: cuDNN's name is the same for every CUDA.

    Args:
        cuda_version: that ONNX Runtime was built with, such as ``13.0``; empty where it has no CUDA.

    Returns:
        The files that were loaded.
    """
    major = cuda_version.partition(".")[0]
    if not major:
        return ()
    search_path = sorted(sys.path, key=lambda entry: next(_found([entry], f"libcublasLt.so.{major}"), None) is None)
    patterns = [f"lib{name}.so.{major}" for name in _OF_CUDA] + [f"lib{name}.so.*" for name in _OTHERS]
    loaded: dict[str, Path] = {}
    for file in (file for pattern in patterns for file in _found(search_path, pattern)):
        if file.name not in loaded and _loads(file):
            loaded[file.name] = file
    return tuple(loaded.values())


def _found(search_path: Sequence[str], pattern: str) -> Iterator[Path]:
    """Files of the ``nvidia`` packages: ``nvidia/cublas/lib``, or ``nvidia/cu13/lib`` for all of CUDA 13."""
    for entry in search_path:
        with contextlib.suppress(OSError):
            yield from sorted(Path(entry).glob(f"nvidia/*/lib/{pattern}"))


def _loads(file: Path) -> bool:
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(file))
        return True
    return False
