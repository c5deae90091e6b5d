"""What was measured on: GPU, driver, versions, clocks, commit.  Nothing here changes a setting."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = (
    "sts-export",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13-bindings",
    "cuda-python",
    "cuda-bindings",
)
_SMI = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")
GPU_BACKENDS = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def describe(commit: str | None) -> dict[str, Any]:
    """Everything but what was measured, for the JSON files.

    Args:
        commit: of the sources; None asks git.
    """
    return {
        "commit": commit or _git("rev-parse", "HEAD") or "unknown",
        "modified": bool(_git("status", "--porcelain")),
        "machine": {
            "processor": platform.machine(),
            "processors": os.cpu_count(),
            "system": platform.platform(),
            "gpu": gpu(),
            "nvcc": _nvcc_version(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _installed(name) for name in _PACKAGES},
            "onnxruntime, imported": _imported_onnxruntime(),
        },
    }


def gpu() -> dict[str, Any] | None:
    """The first GPU as torch and nvidia-smi see it; None where torch sees none.

    Clocks in MHz, power in W, temperature in degrees Celsius, as text of nvidia-smi; memory in bytes.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": list(torch.cuda.get_device_capability(0)),
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2_cache": getattr(properties, "L2_cache_size", None),
        "torch_cuda": torch.version.cuda,
        "nvidia_smi": _nvidia_smi(),
    }


def device() -> str:
    """What torch runs on here: ``cuda`` or ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def architecture() -> str:
    """Of the first GPU, as nvcc names it."""
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return f"sm_{major}{minor}"


def slug(machine: dict[str, Any]) -> str:
    """A short name of the machine for file names: the GPU's, or ``cpu`` and the number of processors."""
    if machine["gpu"] is None:
        return f"cpu{machine['processors']}"
    return re.sub(r"[^a-z0-9]+", "-", machine["gpu"]["name"].lower()).strip("-")


def missing_backends() -> dict[str, str]:
    """The GPU backends of sts-export that cannot run here, and why."""
    from sts_export.backends.onnxruntime.sessions import cuda_refusal
    from sts_export.errors import BackendError
    from sts_export.tensorrt.runtimes import RUNTIMES, load

    if device() != "cuda":
        return dict.fromkeys(GPU_BACKENDS, "there is no CUDA GPU here (torch sees none)")
    reasons = {}
    if (refusal := cuda_refusal()) is not None:
        reasons["onnxruntime-cuda"] = refusal
    for runtime in RUNTIMES:
        try:
            load(runtime)
        except BackendError as error:
            reasons[runtime] = str(error)
        else:
            if find_spec("cuda") is None:
                reasons[runtime] = "cuda-python is not installed"
    return reasons


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _imported_onnxruntime() -> str | None:
    """Of several that may be there, the one that runs."""
    try:
        import onnxruntime
    except ImportError:
        return None
    found: str = onnxruntime.__version__
    return found


def _git(*arguments: str) -> str:
    return _output(["git", "-C", str(ROOT), *arguments])


def _nvidia_smi() -> dict[str, str] | None:
    line = _output(["nvidia-smi", "--id=0", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader,nounits"])
    values = [value.strip() for value in line.split(",")]
    return dict(zip(_SMI, values, strict=True)) if len(values) == len(_SMI) else None


def _nvcc_version() -> str | None:
    found = re.search(r"release ([\d.]+)", _output(["nvcc", "--version"]))
    return found[1] if found else None


def _output(command: list[str]) -> str:
    """What a program prints, or nothing where there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
