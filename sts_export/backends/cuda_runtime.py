"""CUDA as engines need it: one stream, device and pinned memory, asynchronous copies, captured graphs.

A thin layer over ``cuda.bindings.runtime``: every failure is a BackendError that says what to do, and everything
that is allocated is given back when it is closed or dropped.
Source: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/runtime.html
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sts_export.errors import BackendError

ALIGNMENT = 256  # of every tensor that TensorRT is given; cudaMalloc's addresses have at least that
_NO_GPU = "use --backend onnxruntime to run on the CPU"
_ADVICE = {
    "cudaErrorNoDevice": f"there is no CUDA GPU that this process may use; {_NO_GPU}",
    "cudaErrorInsufficientDriver": f"the NVIDIA driver is missing or too old; install a newer one, or {_NO_GPU}",
    "cudaErrorSystemDriverMismatch": "the loaded NVIDIA driver and its libraries differ; reboot",
    "cudaErrorSystemNotReady": "the NVIDIA driver is not ready (fabric manager?); start it",
    "cudaErrorMemoryAllocation": "not enough GPU memory; use a smaller batch, or end what else uses the GPU",
}
_DEFAULT_ADVICE = "the GPU's state may be lost: start again, and if it stays, build the engines again"


class Reserve(Protocol):
    """Holds device memory that nobody uses now."""

    def trim(self) -> None:
        """Give it back."""


class Cuda:
    """The current device and one stream on it, on which all work runs in the order of the calls.

    Args:
        runtime: ``cuda.bindings.runtime``, or what fakes it.

    Raises:
        BackendError: no GPU, no driver or one that is too old.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._success = runtime.cudaError_t.cudaSuccess
        self.synchronizations = 0  # all copies that were asked for before the last one are done
        self.reserves: weakref.WeakSet[Reserve] = weakref.WeakSet()  # given back when memory is short
        if not self.call("cudaGetDeviceCount"):
            raise BackendError(_ADVICE["cudaErrorNoDevice"])
        self._device = self.call("cudaGetDevice")
        # The default stream would make TensorRT synchronize the device around every call, and cannot be captured.
        self.stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        weakref.finalize(self, _releases.run, _quietly, runtime.cudaStreamDestroy, self.stream)

    @property
    def stream_handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def activate(self) -> None:
        """Make the device the calling thread's own: a new thread begins with the first one."""
        self.call("cudaSetDevice", self._device)

    def call(self, name: str, *args: Any, what: str = "") -> Any:
        """Call a function of the CUDA runtime; returns its result without the error code.

        Raises:
            BackendError: it failed; says what was being done (``what``) and what to do.
        """
        error, *result = getattr(self._runtime, name)(*args)
        if error != self._success:
            raise self._failure(name, error, what)
        return result[0] if result else None

    def _failure(self, name: str, error: Any, what: str) -> BackendError:
        self._runtime.cudaGetLastError()  # or the next call reports it again
        kind = self._text("cudaGetErrorName", error)
        said = f"{name}: {self._text('cudaGetErrorString', error)}{f' ({what})' if what else ''}"
        return BackendError(f"CUDA failed in {said}; {_ADVICE.get(kind, _DEFAULT_ADVICE)}")

    def _text(self, name: str, error: Any) -> str:
        _, text = getattr(self._runtime, name)(error)
        return text.decode() if isinstance(text, bytes) else str(text)

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU that are free, and all."""
        error, free, total = self._runtime.cudaMemGetInfo()
        return (int(free), int(total)) if error == self._success else (0, 0)

    def allocate(self, nbytes: int, what: str) -> DeviceMemory:
        """Device memory of unknown content, aligned to 256 bytes; reserves are given back for it.

        Args:
            what: is it for, said when there is not enough.

        Raises:
            BackendError: out of memory, with the bytes asked for and those free.
        """
        error, address = self._runtime.cudaMalloc(max(nbytes, 1))
        out_of_memory = self._runtime.cudaError_t.cudaErrorMemoryAllocation
        if error == out_of_memory:
            self._runtime.cudaGetLastError()
            for reserve in list(self.reserves):
                reserve.trim()
            error, address = self._runtime.cudaMalloc(max(nbytes, 1))
        if error == out_of_memory:
            self._runtime.cudaGetLastError()
            free, total = self.memory()
            raise BackendError(
                f"not enough GPU memory for {what}: {_mb(nbytes)} asked, {_mb(free)} free of {_mb(total)}; "
                "use a smaller batch, export with smaller capacities, or end what else uses the GPU"
            )
        if error != self._success:
            raise self._failure("cudaMalloc", error, what)
        return DeviceMemory(self, self._runtime, int(address), nbytes)

    def allocate_pinned(self, nbytes: int) -> PinnedMemory:
        """Host memory that copies reach without the driver's own staging."""
        address = self.call("cudaHostAlloc", max(nbytes, 1), self._runtime.cudaHostAllocDefault, what="pinned host memory")
        return PinnedMemory(self, self._runtime, int(address), nbytes)

    # Work on the stream; all of it returns before it is done

    def to_device(self, device: int, pinned: int, nbytes: int) -> None:
        self._copy(device, pinned, nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def to_host(self, pinned: int, device: int, nbytes: int) -> None:
        self._copy(pinned, device, nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def on_device(self, target: int, source: int, nbytes: int) -> None:
        self._copy(target, source, nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        if nbytes:
            self.call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    def clear(self, device: int, nbytes: int) -> None:
        """Fill with zero bytes."""
        if nbytes:
            self.call("cudaMemsetAsync", device, 0, nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for all work of the stream."""
        self.call("cudaStreamSynchronize", self.stream)
        self.synchronizations += 1

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """The work that ``work`` puts on the stream, as a graph; nothing of it runs now.

        Raises:
            BackendError: it cannot be captured; the stream is usable again.
        """
        with _releases.put_off(), _no_garbage_collection():  # TensorRT's own objects free memory when they are collected
            mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self.call("cudaStreamBeginCapture", self.stream, mode)
            try:
                work()
            except BaseException:
                _, graph = self._runtime.cudaStreamEndCapture(self.stream)  # else the stream stays in capture
                if graph is not None and int(graph):
                    _quietly(self._runtime.cudaGraphDestroy, graph)
                self._runtime.cudaGetLastError()
                raise
            graph = self.call("cudaStreamEndCapture", self.stream)
        try:
            return CudaGraph(self, self._runtime, self.call("cudaGraphInstantiate", graph, 0))
        finally:
            _quietly(self._runtime.cudaGraphDestroy, graph)

    def launch(self, graph: CudaGraph) -> None:
        self.call("cudaGraphLaunch", graph.handle, self.stream)


class DeviceMemory:
    """address: on the device; nbytes: as asked for.  Freed by :meth:`free` or when dropped, after all work that may use it."""

    def __init__(self, cuda: Cuda, runtime: Any, address: int, nbytes: int) -> None:
        self._cuda = cuda  # the stream must live as long
        self.address, self.nbytes = address, nbytes
        self.free = weakref.finalize(self, _releases.run, _release, runtime, cuda.stream, runtime.cudaFree, address)


class PinnedMemory:
    """address: on the host; nbytes: as asked for.  Freed like :class:`DeviceMemory`."""

    def __init__(self, cuda: Cuda, runtime: Any, address: int, nbytes: int) -> None:
        self._cuda = cuda
        self.address, self.nbytes = address, nbytes
        self.free = weakref.finalize(self, _releases.run, _release, runtime, cuda.stream, runtime.cudaFreeHost, address)


class CudaGraph:
    """An instantiated graph; whoever made it keeps alive what it works on."""

    def __init__(self, cuda: Cuda, runtime: Any, handle: Any) -> None:
        self._cuda = cuda
        self.handle = handle
        destroy = runtime.cudaGraphExecDestroy
        self.free = weakref.finalize(self, _releases.run, _release, runtime, cuda.stream, destroy, handle)


def open_cuda() -> Cuda:
    """The current device through cuda-bindings.

    Raises:
        BackendError: cuda-bindings is not installed, or there is no usable GPU.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(f"running on a GPU needs cuda-bindings ({reason}): pip install 'cuda-bindings>=12.9,<14'") from None
    try:
        return Cuda(runtime)
    except RuntimeError as error:  # the bindings' own, where a library does not load
        raise BackendError(f"cuda-bindings does not work here ({' '.join(str(error).split())[:200]}); {_NO_GPU}") from None


class _Releases:
    """Frees what is dropped, in any thread; during a capture not before its end.

    To wait for a stream that captures, or to free memory in a thread that does, ends the capture.  It is one for the process,
    since a thread may drop what belongs to another stream than the one it captures.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a collection within ``run`` may drop more
        self._captures = 0
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def run(self, release: Callable[..., None], *args: Any) -> None:
        """Call it now, or when nothing is captured any more; in the order of the calls."""
        with self._lock:
            if self._captures:
                self._waiting.append((release, args))
            else:
                release(*args)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Let what is dropped wait."""
        with self._lock:  # until what is being released is
            self._captures += 1
        try:
            yield
        finally:
            with self._lock:
                self._captures -= 1
                while self._waiting and not self._captures:
                    release, args = self._waiting.pop(0)
                    release(*args)


_releases = _Releases()


def _release(runtime: Any, stream: Any, free: Callable[[Any], Any], handle: Any) -> None:
    """Errors are of no use here: the process may be ending, and the driver with it."""
    _quietly(runtime.cudaStreamSynchronize, stream)
    _quietly(free, handle)


def _quietly(call: Callable[[Any], Any], handle: Any) -> None:
    try:
        call(handle)
    except Exception:
        return


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f} MB" if nbytes < 10e9 else f"{nbytes / 1e9:.1f} GB"
