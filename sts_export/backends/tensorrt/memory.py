"""Tensors in device memory: a pool to take them from, and the way between them and numpy arrays."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.cuda_runtime import ALIGNMENT, Cuda, DeviceMemory
from sts_export.graphs.contracts import TensorSpec

_STAGING = 8 << 20  # bytes; larger arrays go through in pieces
_IDLE = 64 << 20  # bytes that a pool may keep, however little was ever in use


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of a contract's, bfloat16 included."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def nbytes_of(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * numpy_dtype(dtype).itemsize


def aligned(nbytes: int) -> int:
    """The next multiple of 256."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def size_class(nbytes: int) -> int:
    """The next of eight sizes between powers of two, so that a slightly longer tensor finds the memory of the one before.

    At most an eighth is wasted, or what is missing to 256 bytes.
    """
    step = max(ALIGNMENT, 1 << max((nbytes - 1).bit_length() - 4, 0))
    return max(1, -(-nbytes // step)) * step


def resolve(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A contract's shape with its symbols replaced."""
    return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)


@dataclass(frozen=True, eq=False)
class DeviceTensor:
    """A dense tensor on the device.

    Args:
        address: of its first element.
        shape, dtype: dtype as in the contracts.
        owner: keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: object

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.shape, self.dtype)

    def first(self, rows: int) -> DeviceTensor:
        """Its first rows."""
        return DeviceTensor(self.address, (rows, *self.shape[1:]), self.dtype, self.owner)

    def row(self, index: int) -> DeviceTensor:
        """One of its rows: [1, ...]."""
        stride = nbytes_of(self.shape[1:], self.dtype)
        return DeviceTensor(self.address + index * stride, (1, *self.shape[1:]), self.dtype, self.owner)


class _Block:
    """Device memory that goes back to its pool when nobody holds it any more."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory


class DevicePool:
    """Device memory for what one engine hands to the next.

    A block that is dropped may be taken again at once: all work is on one stream, so what still reads it runs before what is
    put there next.  Idle blocks may hold 64 MiB, or twice what was ever in use at once: when a tensor is taken, what is beyond
    that is given back, beginning with what was idle for longest; and all of it when the device runs out of memory.

    Args:
        cuda: allocates.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        cuda.reserves.add(self)
        self._free: list[DeviceMemory] = []  # idle for longest first; other threads may append
        self._held = 0  # bytes, idle and in use
        self._most_used = 0  # bytes in use at once
        self._closed = False

    def take(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """A tensor of unknown content.

        Raises:
            BackendError: out of memory.
        """
        block = _Block(self._find(size_class(nbytes_of(shape, dtype))))
        weakref.finalize(block, self._give, block.memory).atexit = False
        self._limit()
        return DeviceTensor(block.memory.address, shape, dtype, block)

    def _find(self, nbytes: int) -> DeviceMemory:
        """The smallest free block that is large enough, unless most of it would be wasted."""
        fitting = [memory for memory in reversed(self._free) if nbytes <= memory.nbytes <= 2 * nbytes]
        if fitting:
            best = min(fitting, key=lambda memory: memory.nbytes)  # the latest of them: the others may fall out of use
            self._free.remove(best)
            return best
        memory = self._cuda.allocate(nbytes, "activations between the engines")
        self._held += nbytes
        return memory

    def _limit(self) -> None:
        idle = sum(memory.nbytes for memory in list(self._free))
        self._most_used = max(self._most_used, self._held - idle)
        while idle > max(_IDLE, 2 * self._most_used):
            idle -= self._release(0)

    def _release(self, index: int) -> int:
        """Give an idle block back; its bytes."""
        memory = self._free.pop(index)
        memory.free()
        self._held -= memory.nbytes
        return memory.nbytes

    def _give(self, memory: DeviceMemory) -> None:
        if self._closed:
            memory.free()
        else:
            self._free.append(memory)

    def close(self) -> None:
        """Give back all memory: what is in use, once it is dropped."""
        self._closed = True
        self.trim()

    def trim(self) -> None:
        """Give back what is not in use."""
        while self._free:
            self._release(-1)


class Staging:
    """Copies numpy arrays to the device and back through pinned memory of a fixed size.

    Args:
        cuda: copies.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._memory = cuda.allocate_pinned(_STAGING)
        self._bytes = host_view(self._memory.address, (_STAGING,), "uint8")
        self._used = 0  # since the last synchronization; what lies before may not have been copied yet
        self._seen = cuda.synchronizations

    def upload(self, array: NDArray[Any], device: int) -> None:
        """Copy all of an array to a device address; the array may change afterwards."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        done = 0
        while done < len(source):
            start, size = self._room(len(source) - done)
            self._bytes[start : start + size] = source[done : done + size]
            self._cuda.to_device(device + done, self._memory.address + start, size)
            done += size

    def download(self, tensor: DeviceTensor) -> NDArray[Any]:
        """A tensor's content; waits for the work that makes it.  bfloat16 comes as float32."""
        array = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
        target = array.reshape(-1).view(np.uint8)
        done = 0
        while done < len(target):
            start, size = self._room(len(target) - done)
            self._cuda.to_host(self._memory.address + start, tensor.address + done, size)
            self._cuda.synchronize()
            target[done : done + size] = self._bytes[start : start + size]
            done += size
        return array.astype(np.float32) if tensor.dtype == "bfloat16" else array

    def _room(self, wanted: int) -> tuple[int, int]:
        """Where at most so many bytes can be placed, and how many."""
        if self._seen != self._cuda.synchronizations:
            self._used, self._seen = 0, self._cuda.synchronizations
        if self._used == _STAGING:
            self._cuda.synchronize()
            self._used, self._seen = 0, self._cuda.synchronizations
        start, size = self._used, min(wanted, _STAGING - self._used)
        self._used += min(aligned(size), _STAGING - start)
        return start, size


def host_view(address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Host memory as an array; whoever allocated it keeps it."""
    raw: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes_of(shape, dtype)).from_address(address))
    return raw.view(numpy_dtype(dtype)).reshape(shape)
