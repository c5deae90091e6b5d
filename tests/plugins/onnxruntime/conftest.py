"""libsts_onnxruntime.so, built once for all tests."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.plugins.onnxruntime.headers import header_root
from tests.plugins.trt_build import REPOSITORY, compile_targets, configure, need_tools


@pytest.fixture(scope="session")
def onnxruntime_root() -> Path:
    need_tools()
    root = header_root()
    if root is None:
        pytest.skip("no ONNX Runtime headers: set ONNXRUNTIME_ROOT to a folder with include/onnxruntime_c_api.h")
    return root


@pytest.fixture(scope="session")
def library(onnxruntime_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libsts_onnxruntime.so, with the device's kernels for one architecture."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "plugins-onnxruntime"
    folder.mkdir(exist_ok=True)
    with (shared / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "Makefile").exists():
            configure(REPOSITORY / "plugins", folder, None, f"-DONNXRUNTIME_ROOT={onnxruntime_root}")
        compile_targets(folder, ["sts_onnxruntime"])
    return folder / "libsts_onnxruntime.so"
