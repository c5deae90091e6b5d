"""Builds of plugins/ for the tests, one per folder of TensorRT headers, shared by the processes of one test run.

The folders come from the environment variable TENSORRT_ROOT (several are separated by colons); without it, from where
Debian's packages and JetPack put the headers.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHITECTURE = "90"
HOST_TARGETS = ("sts_plugins_host_enqueue", "sts_plugins_autoload", "sts_conformance")


def _roots() -> list[Path]:
    given = [Path(part).resolve() for part in os.environ.get("TENSORRT_ROOT", "").split(":") if part]
    if given:
        return given
    system = Path("/usr/include") / f"{platform.machine()}-linux-gnu"
    return [system] if (system / "NvInferRuntimePlugin.h").exists() else []


def version(root: Path) -> str:
    """Of the headers in this folder, as in "10.3.0"."""
    headers = [folder / "NvInferVersion.h" for folder in (root / "include", root)]
    text = next((header.read_text() for header in headers if header.exists()), "")
    numbers = dict(re.findall(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(?:_ENTERPRISE)? +(\d+)", text))
    return ".".join(numbers.get(part, "none") for part in ("MAJOR", "MINOR", "PATCH"))


ROOTS = _roots()
_NO_HEADERS = "no TensorRT headers: set TENSORRT_ROOT to folders with include/NvInfer.h, separated by colons"
_PARAMETERS = [pytest.param(root, id=version(root), marks=pytest.mark.headers) for root in ROOTS] or [
    pytest.param(None, id="none", marks=[pytest.mark.headers, pytest.mark.skip(reason=_NO_HEADERS)])
]
each_root = pytest.mark.parametrize("root", _PARAMETERS)
one_root = pytest.mark.parametrize("root", _PARAMETERS[-1:])


def need_tools() -> None:
    """Skips the test where cmake or nvcc is absent."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is absent")
    if shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is absent")


def run(
    command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished command, with both outputs as text in stdout."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
        check=False,
    )


def configure(source: Path, folder: Path, root: Path | None, *more: str) -> str:
    """CMake's output for plugins/ or a copy of it, with all warnings as errors."""
    options = [f"-DSTS_CUDA_ARCHITECTURES={ARCHITECTURE}", "-DSTS_HOST_ENQUEUE=ON", "-DSTS_WARNINGS_AS_ERRORS=ON"]
    if root is not None:
        options.append(f"-DTENSORRT_ROOT={root}")
    options += more
    result = run(["cmake", "-S", source, "-B", folder, *options])
    assert result.returncode == 0, result.stdout
    return result.stdout


def compile_targets(folder: Path, targets: Sequence[str]) -> None:
    result = run(["cmake", "--build", folder, "--parallel", "2", "--target", *targets])
    assert result.returncode == 0, result.stdout[-8000:]
    assert "warning" not in result.stdout.lower(), result.stdout


def built(factory: pytest.TempPathFactory, root: Path, targets: Sequence[str] = HOST_TARGETS) -> Path:
    """The folder with these targets, compiled against these headers.

    The default ones are plugins that run enqueue on the host, and need no device code.
    """
    need_tools()
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"plugins-{version(root)}"
    folder.mkdir(exist_ok=True)
    with (shared / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "Makefile").exists():
            configure(REPOSITORY / "plugins", folder, root)
        compile_targets(folder, targets)
    return folder
