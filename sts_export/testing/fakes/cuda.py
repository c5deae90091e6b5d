"""A fake of ``cuda.bindings.runtime`` over host memory.

Work put on a stream runs as late as it may: when the stream is synchronized.  So staging memory that is used again too early,
or memory that is freed too early, is seen.  Fresh memory is NaN.  What the real runtime leaves undefined is a :class:`Misuse`,
which is also written down in ``problems``, for code that swallows exceptions.  As on a device, threads may call it, and what
waits for a stream waits for the work that another thread has begun.

Source: the CUDA runtime API reference: memory management, stream management, "Prohibited and Unhandled Operations" of graphs.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import wraps
from inspect import isfunction
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.testing.fakes.slots import CacheSlots

ALIGNMENT = 256  # of cudaMalloc
_HANDLES = count(1001)
_STREAMS: dict[int, tuple[FakeCuda, Stream]] = {}


class Misuse(AssertionError):
    """Undefined behaviour on a real device."""


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


Operation = Callable[[], None]


@dataclass
class Stream:
    """capture: operations of the graph that is being captured; None when there is none.

    settled: threads that have waited for the stream and put nothing on it since.
    """

    queue: list[Operation] = field(default_factory=list)
    capture: list[Operation] | None = None
    invalidated: bool = False
    settled: set[int] = field(default_factory=set)

    def put(self, operation: Operation) -> None:
        (self.queue if self.capture is None else self.capture).append(operation)
        self.settled.discard(threading.get_ident())


@dataclass
class Allocation:
    storage: NDArray[np.uint8]  # keeps the memory
    address: int
    nbytes: int
    on_device: bool


@dataclass
class Graph:
    operations: list[Operation]
    alive: bool = True

    def __int__(self) -> int:
        return id(self)


class _Names:
    """The module's constants, apart from its functions: annotations of the functions mean the classes above."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1


class FakeCuda(_Names):
    """Stands for the module.

    Args:
        memory: bytes of the device.
        devices: GPUs there are.
    """

    def __init__(self, memory: int = 1 << 32, devices: int = 1) -> None:
        self.total, self.devices = memory, devices
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: list[Graph] = []
        self.problems: list[str] = []
        self.calls: Counter[str] = Counter()
        self.failures: dict[str, cudaError_t] = {}  # function -> what its next call returns
        self.lock = threading.RLock()
        self.slots = CacheSlots(self.misuse)

    # What tests ask

    def live(self, on_device: bool) -> int:
        """Bytes allocated and not freed."""
        return sum(one.nbytes for one in list(self.allocations.values()) if one.on_device is on_device)

    def view(self, address: int, nbytes: int, *, on_device: bool = True) -> NDArray[np.uint8]:
        """The bytes, if one live allocation has all of them."""
        one = self.allocation(address)
        if one is None or one.on_device is not on_device or address + nbytes > one.address + one.nbytes:
            where = "device" if on_device else "pinned host"
            raise self.misuse(f"{nbytes} bytes at {address:#x} are not in one live {where} allocation")
        start = address - one.address
        return one.storage[start : start + nbytes]

    def allocation(self, address: int) -> Allocation | None:
        """The live one that an address is in."""
        for one in list(self.allocations.values()):  # other threads free at any time
            if one.address <= address < one.address + one.nbytes:
                return one
        return None

    def check_same(self, address: int, one: Allocation | None, what: str) -> None:
        """Work that is done later, or again, must find the memory that it was put there for."""
        if self.allocation(address) is not one:
            raise self.misuse(f"{what} at {address:#x} was freed, and another allocation has its address")

    def misuse(self, text: str) -> Misuse:
        self.problems.append(text)
        return Misuse(text)

    def live_graphs(self) -> int:
        return sum(graph.alive for graph in self.graphs)

    # The module's functions: (error, result...)

    def _begin(self, name: str) -> cudaError_t:
        self.calls[name] += 1
        return self.failures.pop(name, cudaError_t.cudaSuccess)

    def _unsafe(self, name: str) -> cudaError_t:
        """A call that ends any capture of this thread."""
        error = self._begin(name)
        for stream in self.streams.values():
            if stream.capture is not None:
                stream.invalidated = True
                error = cudaError_t.cudaErrorStreamCaptureUnsupported
        return error

    def cudaGetDeviceCount(self) -> tuple[cudaError_t, int | None]:
        error = self._begin("cudaGetDeviceCount")
        if error:
            return error, None
        return (cudaError_t.cudaSuccess, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaGetDevice(self) -> tuple[cudaError_t, int]:
        return self._begin("cudaGetDevice"), 0

    def cudaSetDevice(self, device: int) -> tuple[cudaError_t]:
        assert device == 0
        return (self._begin("cudaSetDevice"),)

    def cudaGetLastError(self) -> tuple[cudaError_t]:
        return (cudaError_t.cudaSuccess,)

    def cudaGetErrorName(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, b"description of " + error.name.encode()

    def cudaMemGetInfo(self) -> tuple[cudaError_t, int, int]:
        return cudaError_t.cudaSuccess, self.total - self.live(True), self.total

    def cudaMalloc(self, nbytes: int) -> tuple[cudaError_t, int | None]:
        if error := self._unsafe("cudaMalloc"):
            return error, None
        if nbytes > self.total - self.live(True):
            return cudaError_t.cudaErrorMemoryAllocation, None
        return cudaError_t.cudaSuccess, self._allocate(nbytes, on_device=True)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[cudaError_t, int | None]:
        assert flags == self.cudaHostAllocDefault
        if error := self._unsafe("cudaHostAlloc"):
            return error, None
        return cudaError_t.cudaSuccess, self._allocate(nbytes, on_device=False)

    def _allocate(self, nbytes: int, *, on_device: bool) -> int:
        assert nbytes > 0
        raw = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        storage = raw[start : start + nbytes]
        self.allocations[storage.ctypes.data] = Allocation(storage, storage.ctypes.data, nbytes, on_device)
        return int(storage.ctypes.data)

    def cudaFree(self, address: int) -> tuple[cudaError_t]:
        return self._free("cudaFree", address, on_device=True)

    def cudaFreeHost(self, address: int) -> tuple[cudaError_t]:
        return self._free("cudaFreeHost", address, on_device=False)

    def _free(self, name: str, address: int, *, on_device: bool) -> tuple[cudaError_t]:
        if error := self._unsafe(name):
            raise self.misuse(f"{name} in a capture: {error.name}")
        one = self.allocations.pop(address, None)
        if one is None or one.on_device is not on_device:
            raise self.misuse(f"{name} of {address:#x}, which is not allocated")
        # What other threads put there after this one has waited cannot be for its memory; if it is, ``view`` finds out.
        if any(stream.queue and threading.get_ident() not in stream.settled for stream in self.streams.values()):
            raise self.misuse(f"{name} while work is waiting")
        one.storage.fill(0xFF)
        self.slots.forget(one.address, one.nbytes)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[cudaError_t, int]:
        assert flags == self.cudaStreamNonBlocking  # a blocking one would synchronize with the legacy stream
        error = self._begin("cudaStreamCreateWithFlags")
        handle = next(_HANDLES)
        self.streams[handle] = Stream()
        _STREAMS[handle] = (self, self.streams[handle])
        return error, handle

    def cudaStreamDestroy(self, handle: int) -> tuple[cudaError_t]:
        self._begin("cudaStreamDestroy")
        if self.streams.pop(handle).queue:
            raise self.misuse("a stream was destroyed while work is waiting")
        del _STREAMS[handle]
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, handle: int) -> tuple[cudaError_t]:
        if error := self._unsafe("cudaStreamSynchronize"):
            return (error,)
        stream = self.streams[handle]
        stream.settled.add(threading.get_ident())
        waiting, stream.queue = stream.queue, []
        for operation in waiting:
            operation()
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: cudaMemcpyKind, handle: int) -> tuple[cudaError_t]:
        if error := self._begin("cudaMemcpyAsync"):
            return (error,)
        to_device = kind in (cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToDevice)
        from_device = kind in (cudaMemcpyKind.cudaMemcpyDeviceToHost, cudaMemcpyKind.cudaMemcpyDeviceToDevice)
        self.view(target, nbytes, on_device=to_device)  # a pageable host address is a misuse: such a copy is not asynchronous
        self.view(source, nbytes, on_device=from_device)
        ends = {address: self.allocation(address) for address in (target, source)}

        def copy() -> None:
            content = self.view(source, nbytes, on_device=from_device)
            self.view(target, nbytes, on_device=to_device)[:] = content
            for address, one in ends.items():
                self.check_same(address, one, "memory of a copy")
            if to_device and from_device:
                self.slots.copied(target, source, nbytes)
            elif to_device:
                self.slots.check_foreign(target, nbytes, "a copy from the host")

        self.streams[handle].put(copy)
        return (cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, handle: int) -> tuple[cudaError_t]:
        if error := self._begin("cudaMemsetAsync"):
            return (error,)
        self.view(address, nbytes)
        self.streams[handle].put(lambda: self.view(address, nbytes).fill(value))
        return (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, handle: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
        if error := self._begin("cudaStreamBeginCapture"):
            return (error,)
        stream = self.streams[handle]
        assert stream.capture is None and mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        stream.capture, stream.invalidated = [], False
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, handle: int) -> tuple[cudaError_t, Graph | None]:
        error = self._begin("cudaStreamEndCapture")
        stream = self.streams[handle]
        assert stream.capture is not None
        operations, stream.capture = stream.capture, None
        if stream.invalidated or error:
            return error or cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return cudaError_t.cudaSuccess, self._graph(operations)

    def _graph(self, operations: list[Operation]) -> Graph:
        graph = Graph(operations)
        self.graphs.append(graph)
        return graph

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[cudaError_t, Graph | None]:
        assert graph.alive and flags == 0
        if error := self._begin("cudaGraphInstantiate"):
            return error, None
        return cudaError_t.cudaSuccess, self._graph(list(graph.operations))

    def cudaGraphLaunch(self, graph: Graph, handle: int) -> tuple[cudaError_t]:
        if error := self._begin("cudaGraphLaunch"):
            return (error,)
        if not graph.alive:
            raise self.misuse("a destroyed graph was launched")
        for operation in graph.operations:
            self.streams[handle].put(operation)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Graph) -> tuple[cudaError_t]:
        self._begin("cudaGraphDestroy")
        if not graph.alive:
            raise self.misuse("a graph was destroyed twice")
        graph.alive = False
        return (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[cudaError_t]:
        return self.cudaGraphDestroy(graph)


def device_of(handle: int) -> tuple[FakeCuda, Stream]:
    """The fake that a stream handle belongs to, and the stream."""
    if handle not in _STREAMS:
        raise Misuse(f"{handle} is no stream; TensorRT would synchronize the device on the default stream")
    return _STREAMS[handle]


def functions() -> list[str]:
    """Names of the module's functions that are faked."""
    return [name for name, item in vars(FakeCuda).items() if name.startswith("cuda") and isfunction(item)]


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(device: FakeCuda, *args: Any) -> Any:
        with device.lock:
            # No finalizer of Python objects runs within a function of the driver.
            enabled = gc.isenabled()
            gc.disable()
            try:
                return function(device, *args)
            finally:
                if enabled:
                    gc.enable()

    return call


for _name in functions():
    setattr(FakeCuda, _name, _one_at_a_time(getattr(FakeCuda, _name)))
