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

# Each before those that need it; with a version that goes with CUDA's, or with one of its own.
_OF_CUDA = ("cudart", "cublasLt", "cublas", "nvrtc")
_OTHERS = ("curand", "cufft", "cudnn")


def load_cuda_libraries(cuda_version: str) -> tuple[Path, ...]:
    """Load the first of each library that is found; what does not load is left to ONNX Runtime, which says so.

    Args:
        cuda_version: that ONNX Runtime was built with, such as ``13.0``; empty where it has no CUDA.

    Returns:
        The files that were loaded.
    """
    major = cuda_version.partition(".")[0]
    if not major:
        return ()
    patterns = [f"lib{name}.so.{major}" for name in _OF_CUDA] + [f"lib{name}.so.*" for name in _OTHERS]
    return tuple(file for pattern in patterns if (file := _load_first(_found(sys.path, pattern))) is not None)


def _found(search_path: Sequence[str], pattern: str) -> Iterator[Path]:
    """Files of the ``nvidia`` packages: ``nvidia/cublas/lib``, or ``nvidia/cu13/lib`` for all of CUDA 13."""
    for entry in search_path:
        with contextlib.suppress(OSError):
            yield from sorted(Path(entry).glob(f"nvidia/*/lib/{pattern}"))


def _load_first(files: Iterator[Path]) -> Path | None:
    for file in files:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(file))
            return file
    return None
