"""Which engine runs a bundle: the one asked for, or the best that the bundle and the machine offer."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sts_export.backends.cuda_driver import count_gpus
from sts_export.backends.protocol import Backend
from sts_export.bundle.manifest import Bundle
from sts_export.errors import BackendError, RequestError, StsExportError
from sts_export.tensorrt.record import ENGINES
from sts_export.tensorrt.runtimes import RUNTIMES

CPU, CUDA = "onnxruntime", "onnxruntime-cuda"
BACKENDS = (CPU, CUDA, *RUNTIMES)
_LOG = logging.getLogger(__name__)  # Python prints warnings to stderr where nobody has said otherwise


@dataclass(frozen=True)
class OpenedBackend:
    """A backend that is ready.

    Args:
        name: one of BACKENDS.
        max_batch: most requests that it takes together; None for any number.
        operators: file name of the library whose kernels ONNX Runtime runs for the pruning stages on CUDA; None where the
            graphs' own functions run, and with any other backend.
    """

    name: str
    backend: Backend
    max_batch: int | None = None
    operators: str | None = None


def open_backend(
    bundle: Bundle, name: str | None = None, threads: int | None = None, plugins: str | Path | None = None
) -> OpenedBackend:
    """Open an engine for a bundle.

    Args:
        name: one of BACKENDS; None takes the first that works of the bundle's engines, TensorRT's before those of TensorRT for
            RTX, then ONNX Runtime on a CUDA GPU, then ONNX Runtime on the CPU.
        threads: CPU threads; given without a name they choose the CPU.
        plugins: library of custom operators for ONNX Runtime on CUDA; given without a name it chooses that.

    What the bundle has engines for and is passed over all the same is logged as a warning, in one line.

    Raises:
        RequestError: no such backend; threads for one on a GPU, or plugins for another; the plugins cannot be used.
        BundleError, BackendError: the backend asked for, or any at all, cannot run the bundle.
    """
    if name is not None and name not in BACKENDS:
        raise RequestError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if name not in (None, CPU) and threads is not None:
        raise RequestError(f"threads are for the CPU: leave them out with the backend {name}, or take {CPU}")
    if plugins is not None:
        check_plugins(name, threads)
    if name is not None or threads is not None or plugins is not None:
        return _open(bundle, name or (CPU if plugins is None else CUDA), threads, plugins)
    failures: list[str] = []
    for candidate in _candidates(bundle):
        try:
            return _open(bundle, candidate)
        except StsExportError as error:
            failures.append(_pass_over(candidate, str(error)))
    try:
        return _open(bundle, CPU)
    except StsExportError as error:
        if not failures:
            raise
        raise BackendError(f"{error} ({'; '.join(failures)})") from error


def check_plugins(name: str | None, threads: int | None = None) -> None:
    """Whether a library that was given can be for this backend.

    Raises:
        RequestError: it cannot.
    """
    if threads is not None:
        raise RequestError(f"threads are for the CPU, and plugins for {CUDA}: leave one of them out")
    if name in RUNTIMES:
        raise RequestError(f"{name} takes the plugins that its engines were built with: leave them out, or take {CUDA}")
    if name not in (None, CUDA):
        raise RequestError(f"plugins are for {CUDA}: leave them out with the backend {name}, or take {CUDA}")


def _pass_over(name: str, reason: str) -> str:
    said = f"{name} is not used: {' '.join(reason.split())}"
    _LOG.warning("note: %s", said)
    return said


def _candidates(bundle: Bundle) -> Iterator[str]:
    """Names of backends on a GPU that may work, best first.  Nothing is imported for what the bundle or the machine lacks."""
    engines = [runtime for runtime in RUNTIMES if os.path.isdir(bundle.folder / ENGINES / runtime)]
    if not count_gpus():
        for runtime in engines:
            _pass_over(runtime, "the bundle has engines, but there is no CUDA GPU here")
        return
    yield from engines
    if bundle.manifest.quantization is None:
        from sts_export.backends.onnxruntime.sessions import cuda_refusal

        if cuda_refusal() is None:
            yield CUDA


def _open(bundle: Bundle, name: str, threads: int | None = None, plugins: str | Path | None = None) -> OpenedBackend:
    backend: Any
    if name in (CPU, CUDA):
        from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend

        if name == CPU:
            return OpenedBackend(name, OnnxRuntimeBackend(bundle, threads))
        from sts_export.backends.onnxruntime.operators import find_operators, missing_operators

        operators = find_operators(bundle, plugins)
        backend = OnnxRuntimeBackend(bundle, device="cuda", operators=operators)
        if operators is not None:
            _LOG.info("ONNX Runtime runs the pruning stages by %s", operators)
        elif (cost := missing_operators(bundle.manifest)) is not None:
            _LOG.warning("note: %s", cost)
        return OpenedBackend(name, backend, operators=None if operators is None else operators.name)
    from sts_export.backends.tensorrt.backend import open_tensorrt_backend

    backend = open_tensorrt_backend(bundle, next(runtime for runtime in RUNTIMES if runtime == name))
    return OpenedBackend(name, backend, backend.max_batch)
