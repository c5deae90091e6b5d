"""Where the Python modules of TensorRT 10.3 to 11 and of TensorRT for RTX differ, and what is asked of them one way only.

Source: python/src/infer/pyCore.cpp of https://github.com/NVIDIA/TensorRT, v10.3.0 to v11.1, and tensorrt_rtx 1.7.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sts_export.files import replace_file

_REPEATED = 3  # logged errors that a message repeats


class Messages:
    """The first errors that TensorRT logged; later ones are what came of them."""

    def __init__(self) -> None:
        self._first: list[str] = []

    def add(self, message: str) -> None:
        if len(self._first) < _REPEATED:
            self._first.append(message)

    def take(self) -> str:
        """What was logged first since the last call, on one line."""
        first, self._first = self._first, []
        return "; ".join(" ".join(message.split()) for message in first)[:500] or "it gives no reason"


@cache  # TensorRT keeps the first logger of a process, whatever later runtimes are given
def logger_of(trt: ModuleType) -> tuple[Any, Messages]:
    """The process's logger for one module, and what it hears."""
    messages = Messages()

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        """Errors only: they become part of the exception."""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.add(message)

    return Logger(), messages


def aliased_input(engine: Any, output: str) -> str | None:
    """The input whose address an output must have; since 10.15, and None before it, when no engine had any."""
    ask = getattr(engine, "get_aliased_input_tensor", None)
    name = ask(output) if ask is not None else None
    return str(name) if name else None


def tells_aliases(engine: Any) -> bool:
    return hasattr(engine, "get_aliased_input_tensor")


def create_context(trt: ModuleType, engine: Any, *, capturable: bool, kernels: KernelCache) -> Any:
    """A context whose activations lie where :func:`set_activations` says; None if TensorRT fails.

    TensorRT for RTX compiles kernels when it meets a shape: by default a general one at once and a better one in the
    background, which a captured graph would never get.  So a context that is to be captured waits for the better one.
    """
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine.create_execution_context(user_managed)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(user_managed)
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if capturable else strategies.LAZY
    kernels.attach(config)
    return engine.create_execution_context(config)


class KernelCache:
    """Kernels that TensorRT for RTX has compiled, shared by all contexts and kept for the next process; TensorRT has none.

    Args:
        file: beside the engines.  One of another GPU, driver or version is not used, and written anew.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cache: Any = None
        self._known = 0  # bytes of the file

    def attach(self, config: Any) -> None:
        """Let a runtime configuration use the kernels."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                content = self._file.read_bytes()
            except OSError:
                content = b""
            if content and self._cache.deserialize(content):
                self._known = len(content)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if kernels were added; a bundle that cannot be written to does without."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(memoryview(serialized))
        if len(content) in (0, self._known):
            return
        try:
            replace_file(self._file, content)
        except OSError:
            return
        self._known = len(content)


def can_be_captured(context: Any, stream: int) -> bool:
    """TensorRT for RTX says whether a context can be captured; TensorRT finds out by trying."""
    ask = getattr(context, "is_stream_capturable", None)
    return ask is None or bool(ask(stream))
