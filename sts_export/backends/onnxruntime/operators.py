"""The library of custom operators: one kernel for each pruning stage on CUDA, in the place of the functions in the graphs.

It is plugins/onnxruntime of the repository, built.  ONNX Runtime prefers an operator that is registered to a function of the
same domain and name in the model, so the graphs are the same with and without it.
Source: https://onnxruntime.ai/docs/reference/operators/add-custom-op.html
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import onnxruntime as ort

from sts_export.backends.cuda_driver import count_gpus
from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.native.libraries import Library, find_library

OPERATORS_VERSION = 1  # of the operators' inputs, outputs and attributes
_EXPORTS = ("RegisterCustomOps", "stsOperatorsVersion", "stsOnnxRuntimeApiVersion", "stsDeviceRefusal")
_HOW_TO_GET_IT = (
    "build it with scripts/build_plugins of the repository (needs nvcc and ONNX Runtime's C headers), or install the wheel "
    "that scripts/kernels_wheel makes of it"
)
_WITHOUT_IT = {
    "RepulsionSelect": "stage 1 as a loop of small steps with one host synchronization each",
    "LastTokenTopK": "stage 2 as a chain of small kernels",
}
LIBRARY = Library("libsts_onnxruntime.so", "operator library", _EXPORTS, _HOW_TO_GET_IT)


def find_operators(bundle: Bundle, given: str | Path | None) -> Path | None:
    """The library for a bundle: the one that was given, or where libraries are looked for (``sts_export.native.libraries``).

    Nothing is looked for where none of the bundle's stages has a kernel in it; one that was given is checked all the same, and
    left out.

    Raises:
        RequestError: the given one is missing, or not a library that this ONNX Runtime takes.
    """
    if given is None and not _operators_of(bundle.manifest):
        return None
    found = find_library(LIBRARY, given, bundle.folder, _unusable)
    return found if _operators_of(bundle.manifest) else None


def missing_operators(manifest: Manifest) -> str | None:
    """What it costs on CUDA that there is no library, and how to get it; None for a bundle that has no use for it."""
    called = _operators_of(manifest)
    if not called:
        return None
    runs = " and ".join(words for operator, words in _WITHOUT_IT.items() if operator in called)
    return f"without {LIBRARY.file_name} ONNX Runtime runs {runs}; {_HOW_TO_GET_IT}"


def _operators_of(manifest: Manifest) -> set[str | None]:
    """Operators of the library that the bundle's graphs call."""
    return {manifest.pruning.stage1.plugin, manifest.pruning.stage2.plugin} & set(_WITHOUT_IT)


def _unusable(file: Path) -> str | None:
    """Load it, ask for its versions and whether the GPU runs it, and register it for a trial; why that fails, or None."""
    try:
        library = ctypes.CDLL(str(file.resolve()))
    except OSError as error:
        return f"it cannot be loaded ({_one_line(error)})"
    version, needed = int(library.stsOperatorsVersion()), int(library.stsOnnxRuntimeApiVersion())
    if version != OPERATORS_VERSION:
        return f"its operators have version {version}, and this sts-export takes version {OPERATORS_VERSION}"
    if needed > _api_version():
        return f"it needs ONNX Runtime 1.{needed} or later, and {ort.__version__} is installed"
    if count_gpus() and (reason := _device_refusal(library)) is not None:
        return f"its kernels do not run on this GPU ({reason})"
    try:
        ort.SessionOptions().register_custom_ops_library(str(file.resolve()))
    except Exception as error:  # onnxruntime raises its own classes, which share no base but Exception
        return f"ONNX Runtime refuses it ({_one_line(error)})"
    return None


def _device_refusal(library: ctypes.CDLL) -> str | None:
    """An old driver, or a GPU that the library was not compiled for: only running would tell otherwise, by failing."""
    library.stsDeviceRefusal.restype = ctypes.c_char_p
    said: bytes | None = library.stsDeviceRefusal()
    return None if said is None else said.decode("utf-8", "replace")


def _api_version() -> int:
    """ORT_API_VERSION of the installed ONNX Runtime, which is its minor version."""
    return int(ort.__version__.split(".")[1])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
