"""The kernels' C interface: built with g++, called with numpy arrays, every buffer between guards."""

from __future__ import annotations

import ctypes
import fcntl
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "kernels"
HOST_SOURCES = ("host/repulsion_select_host.cpp", "host/last_token_topk_host.cpp", "host/c_api_host.cpp")
DEVICE_SOURCES = ("repulsion_select.cu", "last_token_topk.cu", "c_api.cu")
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", f"-I{HERE}")
REPULSION, LAST_TOKEN = "sts_repulsion_select", "sts_last_token_topk"
# numpy's types, sts::DataType
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
_GUARD, _ALIGNMENT = 512, 256


class Invalid(Exception):
    """The kernel refused its arguments."""


def compile_sources(sources: Sequence[str], folder: Path, *flags: str) -> list[Path]:
    """Object files of some of the kernels' sources, by g++; the device's ones against simulated_device.h."""

    def compile_one(source: str) -> Path:
        target = folder / f"{Path(source).name}.o"
        subprocess.run(["g++", *FLAGS, *flags, "-x", "c++", "-c", SOURCES / source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def build(folder: Path) -> Path:
    """A library of the host kernels and of the device's, simulated; built by the first process that asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libkernels.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            sanitize = ("-fsanitize=undefined", "-fno-sanitize-recover=undefined")
            objects = compile_sources([*HOST_SOURCES, *DEVICE_SOURCES], folder, "-O1", "-fPIC", *sanitize)
            subprocess.run(["g++", "-shared", *sanitize, *objects, "-o", folder / "unfinished.so"], check=True)
            (folder / "unfinished.so").rename(library)
    return library


class _Guarded:
    """Memory for a kernel with guards on both sides, full of a pattern that is no valid result."""

    def __init__(self, size: int) -> None:
        self._memory = np.full(size + 2 * _GUARD + _ALIGNMENT, 0xA5, np.uint8)
        self._start = _GUARD + -(self._memory.ctypes.data + _GUARD) % _ALIGNMENT
        self._end = self._start + size
        self.address = self._memory.ctypes.data + self._start

    def check(self) -> None:
        outside = (self._memory[: self._start], self._memory[self._end :])
        assert all((guard == 0xA5).all() for guard in outside), "written out of bounds"

    def int64(self, *shape: int) -> NDArray[np.int64]:
        self.check()
        values: NDArray[np.int64] = self._memory[self._start : self._end].view(np.int64)
        result: NDArray[np.int64] = values.reshape(shape).copy()
        return result


def _guarded_copy(array: NDArray[Any] | None) -> _Guarded | None:
    if array is None:
        return None
    copy = _Guarded(array.nbytes)
    copy._memory[copy._start : copy._end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return copy


def _address(memory: _Guarded | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if memory is None else memory.address)


@dataclass(frozen=True)
class Kernels:
    """One side of the library: ``host`` for one thread of this machine, ``device`` for the simulated device."""

    library: ctypes.CDLL
    side: str

    def _call(self, name: str, *arguments: Any) -> None:
        values = [ctypes.c_int64(value) if isinstance(value, int) else value for value in arguments]
        if self.side == "device":
            values.append(ctypes.c_void_p(None))  # stream
        status = getattr(self.library, name + ("_host" if self.side == "host" else ""))(*values)
        if status == 1:
            raise Invalid(name)
        assert status == 0

    def workspace_size(self, name: str, *sizes: int) -> int:
        """Bytes; sizes as in the shape's structure."""
        function = getattr(self.library, f"{name}_workspace")
        function.restype = ctypes.c_size_t
        return int(function(*map(ctypes.c_int64, sizes)))

    def _workspace(self, name: str, *sizes: int) -> _Guarded:
        return _Guarded(self.workspace_size(name, *sizes))

    def repulsion(
        self,
        features: NDArray[Any],
        first: Sequence[int] | None,
        steps: int,
        candidates: NDArray[np.bool_] | None = None,
        epsilon: float = 1e-6,
    ) -> NDArray[np.int64]:
        """features [crops, rows, width] -> chosen [crops, steps]."""
        crops, rows, width = features.shape
        workspace = self._workspace(REPULSION, crops, rows, width, steps)
        chosen = _Guarded(crops * max(steps, 0) * 8)
        inputs = [
            _guarded_copy(array)
            for array in (features, None if first is None else np.array(first, np.int64).reshape(crops), candidates)
        ]
        self._call(
            REPULSION,
            *features.shape,
            steps,
            ctypes.c_int32(TYPES[features.dtype.name]),
            *map(_address, inputs),
            ctypes.c_float(epsilon),
            _address(chosen),
            _address(workspace),
        )
        workspace.check()
        return chosen.int64(crops, steps)

    def repulsion_from_gram(
        self,
        gram: NDArray[np.float32],
        first: Sequence[int] | None,
        steps: int,
        candidates: NDArray[np.bool_] | None = None,
        epsilon: float = 1e-6,
    ) -> NDArray[np.int64]:
        """gram [crops, rows, rows] -> chosen [crops, steps]."""
        crops, rows, _ = gram.shape
        workspace = self._workspace(REPULSION, crops, rows, 1, steps)
        chosen = _Guarded(crops * steps * 8)
        inputs = [_guarded_copy(array) for array in (gram, None if first is None else np.array(first, np.int64), candidates)]
        self._call(
            f"{REPULSION}_from_gram",
            crops,
            rows,
            steps,
            *map(_address, inputs),
            ctypes.c_float(epsilon),
            _address(chosen),
            _address(workspace),
        )
        workspace.check()
        return chosen.int64(crops, steps)

    def topk(
        self,
        query: NDArray[Any],
        key: NDArray[Any],
        mask: NDArray[np.int64],
        visual_mask: NDArray[np.bool_],
        visual: int,
        keep: int,
        scale: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """query [batch, heads, rows, d], key [batch, kv_heads, rows, d] -> kept_rows [batch, rows - V + K'], last_row."""
        batch, heads, rows, head_dim = query.shape
        sizes = (batch, heads, key.shape[1], rows, head_dim, visual, keep)
        workspace = self._workspace(LAST_TOKEN, *sizes)
        kept, last = _Guarded(batch * max(rows - visual + keep, 0) * 8), _Guarded(batch * 8)
        inputs = [_guarded_copy(array) for array in (query, key, mask, visual_mask)]
        self._call(
            LAST_TOKEN,
            *sizes,
            ctypes.c_int32(TYPES[query.dtype.name]),
            *map(_address, inputs),
            ctypes.c_float(scale),
            _address(kept),
            _address(last),
            _address(workspace),
        )
        workspace.check()
        return kept.int64(batch, rows - visual + keep), last.int64(batch)
