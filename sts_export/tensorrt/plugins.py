"""The plugin library: one kernel for each pruning stage (plugins/ of the repository) instead of function bodies."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.errors import BackendError, RequestError
from sts_export.paths import user_path
from sts_export.pruning.registry import plugin_names
from sts_export.tensorrt.elf import machine_of
from sts_export.tensorrt.runtimes import parse_version, version_of

LIBRARY = "libsts_plugins.so"
NAMESPACE, VERSION = "sts", "1"
NAMES = plugin_names()
HOW_TO_GET_IT = (
    "build it with scripts/build_plugins of the repository (needs nvcc and TensorRT's headers), then give it with --plugins"
)
WITHOUT_IT = (
    "without the plugin library the pruning stages run as standard operators, stage 1 as a loop of K small steps instead of "
    f"one kernel; {HOW_TO_GET_IT}"
)


def with_stages(manifest: Manifest) -> tuple[str, ...]:
    """Graphs that call the plugins: the selector, and the decoder's parts but for the last."""
    return ("selector", *(part.name for part in manifest.pruning.parts if not part.is_last))


def find_library(bundle: Bundle, given: str | None) -> Path | None:
    """The library that was given, else the one in the bundle, else the one that scripts/build_plugins left in the repository.

    Raises:
        RequestError: the given one does not exist.
    """
    if given is not None:
        file = user_path(given)
        if not file.is_file():
            raise RequestError(f"there is no plugin library {file}; {HOW_TO_GET_IT}, or leave --plugins out")
        return file.resolve()
    repository = Path(__file__).resolve().parents[2]
    for file in (bundle.folder / LIBRARY, repository / "build" / "plugins" / LIBRARY):
        if file.is_file() and _for_this_machine(file):
            return file.resolve()
    return None


def _for_this_machine(file: Path) -> bool:
    """A bundle may carry the library of the machine that it is meant for."""
    names = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}
    return machine_of(file) == names.get(platform.machine().lower(), "")


def load_library(trt: Any, logger: Any, file: Path) -> None:
    """Register the library's plugins in this process; nothing happens if they are there already.

    Raises:
        BackendError: it is no plugin library, or one for another major version.
    """
    registry = trt.get_plugin_registry()
    if not _missing(registry):
        return
    built, installed = _headers_version(file), parse_version(version_of(trt))
    if built is not None and built[0] != installed[0]:  # its logger's virtual functions moved: it would call wrong ones
        raise BackendError(
            f"{file} was built for TensorRT {built[0]}.{built[1]}, and {installed[0]}.{installed[1]} is installed; "
            f"{HOW_TO_GET_IT}"
        )
    handle = registry.load_library(str(file))
    missing = _missing(registry)
    if handle is None or missing:
        lacks = f"it lacks {' and '.join(missing)}" if missing else "TensorRT refuses it"
        raise BackendError(f"{file} cannot be used as plugin library: {lacks}; {HOW_TO_GET_IT}")


def _headers_version(file: Path) -> tuple[int, int] | None:
    """Major and minor version of the headers it was built with; None for what is no plugin library of ours."""
    try:
        number = int(ctypes.CDLL(str(file.resolve())).stsPluginsTensorRTVersion())
    except (OSError, AttributeError):
        return None
    return number // 10000, number // 100 % 100


def _missing(registry: Any) -> list[str]:
    return [name for name in NAMES if registry.get_creator(name, VERSION, NAMESPACE) is None]
