"""TensorRT's two Python modules, ``tensorrt`` and ``tensorrt_rtx``, which share one API."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

from sts_export.errors import BackendError, RequestError

Runtime = Literal["tensorrt", "tensorrt-rtx"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
_MODULES: dict[Runtime, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def load(runtime: Runtime) -> ModuleType:
    """The Python module of a runtime.

    Raises:
        BackendError: it is not installed, or its libraries do not load.
    """
    name = _MODULES[runtime]
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise BackendError(f"{runtime} needs the Python module {name}: pip install 'sts-export[{runtime}]'") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(f"{name} is installed but does not load ({reason}); reinstall 'sts-export[{runtime}]'") from None


def installed() -> list[Runtime]:
    """The runtimes whose module is there, without loading it."""
    from importlib.util import find_spec

    return [runtime for runtime, name in _MODULES.items() if find_spec(name) is not None]


def version_of(module: ModuleType) -> str:
    """Full version, such as ``10.3.0.26``."""
    return str(module.__version__)


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor of ``10.3`` or ``10.3.0.26``.

    Raises:
        RequestError: not a version.
    """
    parts = text.split(".")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() for part in parts):
        raise RequestError(f"{text!r} is not a TensorRT version; give one such as 10.3")
    return int(parts[0]), int(parts[1])


def graph_version(runtime: Runtime, version: str) -> tuple[int, int]:
    """The TensorRT version whose operators a runtime takes: TensorRT for RTX counts its own versions, and takes the newest.

    Args:
        version: of the installed module; its suffixes (``.post1``) do not matter.
    """
    return parse_version(".".join(version.split(".")[:2])) if runtime == "tensorrt" else (11, 0)


def strongly_typed(module: Any) -> int:
    """Flags of a strongly typed network; from TensorRT 11 on there is no other kind."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
