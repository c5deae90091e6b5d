"""Does cuda-bindings capture and replay a CUDA graph here, by the code of the TensorRT backend?"""

from __future__ import annotations

import ctypes
from typing import Any

from sts_export.backends.cuda_runtime import Cuda, open_cuda

_NBYTES = 1 << 20


def capture_and_replay(cuda: Cuda | None = None) -> dict[str, Any]:
    """A copy to the device and back, captured once and replayed twice over other bytes.

    Returns:
        ``right``: whether the bytes came back; ``error``: None, or why it did not run.
    """
    try:
        return {"right": _replay(open_cuda() if cuda is None else cuda), "error": None}
    except Exception as error:  # of the bindings, too: the engines must run
        return {"right": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def _replay(cuda: Cuda) -> bool:
    source, target = cuda.allocate_pinned(_NBYTES), cuda.allocate_pinned(_NBYTES)
    first, second = cuda.allocate(_NBYTES, "a capture"), cuda.allocate(_NBYTES, "a capture")

    def copies() -> None:
        cuda.to_device(first.address, source.address, _NBYTES)
        cuda.on_device(second.address, first.address, _NBYTES)
        cuda.to_host(target.address, second.address, _NBYTES)

    graph = cuda.capture(copies)
    came_back = []
    for value in (3, 5):
        ctypes.memset(source.address, value, _NBYTES)
        cuda.launch(graph)
        cuda.synchronize()
        came_back.append(ctypes.string_at(target.address, _NBYTES) == bytes([value]) * _NBYTES)
    return all(came_back)
