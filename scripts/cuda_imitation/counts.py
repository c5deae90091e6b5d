"""What was asked of the imitation while a graph ran."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# By their numbers in log.h.
_KINDS = (
    "launches",
    "calls",
    "copies to the device",
    "copies to the host",
    "copies on the device",
    "copies on the host",
    "memsets",
    "synchronizations",
    "allocations",
    "cuDNN plans",
)
_CALLS = _KINDS[1]
# Calls of libraries that compute, by the kind under which they are counted; others do not count.
_LIBRARIES = {
    "matrix products": re.compile(r"cublas\w*(gemm|Gemm)\w*|cublasLtMatmul"),
    "cuDNN operations": re.compile(r"cudnn(BackendExecute|\w*Forward\w*|ReduceTensor|AddTensor)"),
}
COUNTED = ("launches", *_LIBRARIES, *_KINDS[2:])


@dataclass(frozen=True)
class Event:
    """Something asked of CUDA.

    Args:
        kind: one of COUNTED.
        name: of the kernel, mangled, or of the function.
        bytes: of a copy, a memset or an allocation.
    """

    kind: str
    name: str
    bytes: int


@dataclass(frozen=True)
class Counts:
    """Events in the order in which they were asked for."""

    events: Sequence[Event]

    def by_kind(self) -> dict[str, int]:
        """All of COUNTED, those that did not happen too."""
        found = Counter(event.kind for event in self.events)
        return {kind: found[kind] for kind in COUNTED}

    def by_name(self) -> dict[str, int]:
        """Kernels and calls of libraries."""
        return dict(Counter(event.name for event in self.events if event.kind in ("launches", *_LIBRARIES)))


class Log:
    """Of the imitation that this process has loaded."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.imitation_size.restype = ctypes.c_uint64

    def reset(self) -> None:
        self._library.imitation_reset()

    def counts(self) -> Counts:
        """Since the last reset."""
        kind, name, size = ctypes.c_int32(), ctypes.c_char_p(), ctypes.c_uint64()
        events = []
        for index in range(self._library.imitation_size()):
            self._library.imitation_event(ctypes.c_uint64(index), ctypes.byref(kind), ctypes.byref(name), ctypes.byref(size))
            called = (name.value or b"").decode()
            logged = _KINDS[kind.value]
            counted = library_work(called) if logged == _CALLS else logged
            if counted is not None:
                events.append(Event(counted, called, size.value))
        return Counts(events)


def library_work(name: str) -> str | None:
    """The kind of a library's function that computes; None for others, which do not count."""
    return next((kind for kind, pattern in _LIBRARIES.items() if pattern.fullmatch(name)), None)
