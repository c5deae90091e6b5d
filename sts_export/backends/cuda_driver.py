"""What the NVIDIA driver says, without loading CUDA."""

from __future__ import annotations

import ctypes
import sys


def count_gpus() -> int:
    """CUDA GPUs that this process may use (``CUDA_VISIBLE_DEVICES``); 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        working = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if working else 0
