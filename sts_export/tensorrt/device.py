"""The GPU of this machine, if there is one."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """name: as the driver says it; capability: such as ``sm_90``; memory: bytes in all; free: bytes free now."""

    name: str
    capability: str
    memory: int
    free: int

    @property
    def target(self) -> str:
        """Folder name of engines for it: an engine is tuned for one GPU model."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{self.capability}"


def current_gpu() -> Gpu | None:
    """CUDA's current device; None without cuda-python, driver or device."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    ok = cudart.cudaError_t.cudaSuccess
    error, count = cudart.cudaGetDeviceCount()
    if error != ok or not count:
        return None
    error, device = cudart.cudaGetDevice()
    if error != ok:
        return None
    error, properties = cudart.cudaGetDeviceProperties(device)
    if error != ok:
        return None
    error, free, total = cudart.cudaMemGetInfo()
    if error != ok:
        return None
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name, f"sm_{properties.major}{properties.minor}", int(total), int(free))
