"""The kernels of plugins/kernels, compiled once for all tests."""

from __future__ import annotations

import ctypes
import shutil

import pytest

from tests.plugins.kernels import Kernels, build


@pytest.fixture(scope="session")
def kernel_library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile plugins/kernels")
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist: the folder of all workers
        folder = folder.parent
    return ctypes.CDLL(str(build(folder / "kernels")))


@pytest.fixture(scope="session")
def host(kernel_library: ctypes.CDLL) -> Kernels:
    return Kernels(kernel_library, "host")


@pytest.fixture(scope="session")
def device(kernel_library: ctypes.CDLL) -> Kernels:
    """The device's sources, run by simulated_device.h."""
    return Kernels(kernel_library, "device")


@pytest.fixture(scope="session", params=["host", "device"])
def kernels(request: pytest.FixtureRequest, kernel_library: ctypes.CDLL) -> Kernels:
    return Kernels(kernel_library, request.param)
