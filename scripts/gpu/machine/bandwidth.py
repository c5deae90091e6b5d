"""Measured memory bandwidth: turns bytes that must move into the time they take at least."""

from __future__ import annotations

import statistics
import time
from typing import Any

_REPEATS = 20


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a copy within one device, bytes read plus bytes written; median.

    Args:
        device: as torch names it.  On a GPU 2 GiB are copied, many times its cache.
    """
    import torch

    cuda: Any = torch.cuda
    size = 1 << (31 if device == "cuda" else 24)

    # Random bytes: zeros may move faster than data does.
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(3 + _REPEATS):
        if device == "cuda":
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            begin.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            target.copy_(source)
            seconds.append(time.perf_counter() - started)
    del source, target
    if device == "cuda":
        cuda.empty_cache()  # what torch keeps for itself, no other process can have
    return float(2 * size / statistics.median(seconds[3:]))
