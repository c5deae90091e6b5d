"""The plugin library: one kernel for each pruning stage (plugins/ of the repository) instead of function bodies."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.errors import BackendError
from sts_export.native.libraries import Library
from sts_export.native.libraries import find_library as find_native_library
from sts_export.pruning.registry import plugin_names
from sts_export.tensorrt.runtimes import parse_version, version_of

NAMESPACE, VERSION = "sts", "1"
NAMES = plugin_names()
HOW_TO_GET_IT = (
    "build it with scripts/build_plugins of the repository (needs nvcc and TensorRT's headers), then give it with --plugins"
)
_LIBRARY = Library("libsts_plugins.so", "plugin library", ("getCreators",), HOW_TO_GET_IT)
LIBRARY = _LIBRARY.file_name
WITHOUT_IT = (
    "without the plugin library the pruning stages run as standard operators, stage 1 as a loop of K small steps instead of "
    f"one kernel; {HOW_TO_GET_IT}"
)


def with_stages(manifest: Manifest) -> tuple[str, ...]:
    """Graphs that call the plugins: the selector, and the decoder's parts but for the last."""
    return ("selector", *(part.name for part in manifest.pruning.parts if not part.is_last))


def find_library(bundle: Bundle, given: str | None, installed: tuple[int, int]) -> Path | None:
    """The library that was given, else where libraries are looked for (``sts_export.native.libraries``).

    Args:
        installed: TensorRT's major and minor version.

    Raises:
        RequestError: the given one does not exist, or is not the library for this machine and this TensorRT.
    """

    def unusable(file: Path) -> str | None:
        words = _other_version(file, installed)
        return None if words is None else f"it was {words}"

    return find_native_library(_LIBRARY, given, bundle.folder, unusable)


def load_library(trt: Any, logger: Any, file: Path) -> None:
    """Register the library's plugins in this process; nothing happens if they are there already.

    Raises:
        BackendError: it is no plugin library, or one for another major version.
    """
    registry = trt.get_plugin_registry()
    if not _missing(registry):
        return
    words = _other_version(file, parse_version(version_of(trt)))
    if words is not None:
        raise BackendError(f"{file} was {words}; {HOW_TO_GET_IT}")
    handle = registry.load_library(str(file))
    missing = _missing(registry)
    if handle is None or missing:
        lacks = f"it lacks {' and '.join(missing)}" if missing else "TensorRT refuses it"
        raise BackendError(f"{file} cannot be used as plugin library: {lacks}; {HOW_TO_GET_IT}")


def _other_version(file: Path, installed: tuple[int, int]) -> str | None:
    """That a library is for another major version, whose logger's virtual functions moved: it would call wrong ones."""
    built = _headers_version(file)
    if built is None or built[0] == installed[0]:
        return None
    return f"built for TensorRT {built[0]}.{built[1]}, and {installed[0]}.{installed[1]} is installed"


def _headers_version(file: Path) -> tuple[int, int] | None:
    """Major and minor version of the headers it was built with; None for what is no plugin library of ours."""
    try:
        number = int(ctypes.CDLL(str(file.resolve())).stsPluginsTensorRTVersion())
    except (OSError, AttributeError):
        return None
    return number // 10000, number // 100 % 100


def _missing(registry: Any) -> list[str]:
    return [name for name in NAMES if registry.get_creator(name, VERSION, NAMESPACE) is None]
