"""The imitation by itself: memory, copies by direction, what is logged, and stubs.  Numbers are those of CUDA's headers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scripts.cuda_imitation.counts import COUNTED, Log
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.library import build, compile_library

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, ANY = 1, 2, 3, 4
COMPUTING = {"cublasGemmEx": "matrix products", "cublasLtMatmul": "matrix products", "cudnnReduceTensor": "cuDNN operations"}
STUBS = {*COMPUTING, "cublasSetStream_v2", "cublasCreate_v2", "cublasLtMatmulDescCreate"}
HEADERS = Path("/usr/local/cuda/include")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the imitation")
    return ctypes.CDLL(str(compile_library(STUBS, tmp_path_factory.mktemp("imitation"))))


@pytest.fixture
def log(library: ctypes.CDLL) -> Log:
    log = Log(library._name)
    log.reset()
    return log


def counted(log: Log) -> dict[str, int]:
    return {kind: number for kind, number in log.counts().by_kind().items() if number}


def malloc(library: ctypes.CDLL, size: int) -> int:
    pointer = ctypes.c_void_p()
    assert library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
    assert pointer.value is not None
    return pointer.value


def copy(library: ctypes.CDLL, target: int, source: int, size: int, kind: int) -> None:
    addresses = ctypes.c_void_p(target), ctypes.c_void_p(source)
    assert library.cudaMemcpyAsync(*addresses, ctypes.c_size_t(size), kind, None) == 0


def test_layouts_are_those_of_the_headers(library: ctypes.CDLL, tmp_path: Path) -> None:
    if not (HEADERS / "cuda_runtime_api.h").exists():
        pytest.skip(f"no cuda_runtime_api.h in {HEADERS}")
    program = tmp_path / "headers_check"
    source = Path(__file__).with_name("headers_check.cpp")
    subprocess.run(["g++", f"-I{HEADERS}", source, library._name, "-o", program], check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name: int(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    if (version := found.pop("version")) // 1000 != 13:
        pytest.skip(f"the CUDA headers in {HEADERS} are of version {version}, not 13")
    # An H100, from the CUDA C++ programming guide's table of compute capability 9.0 and its data sheet.
    assert found == {
        "sizes": 1,
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "totalGlobalMem": 80,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiProcessor": 2048,
        "maxGridSize": 65535,
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
        "sharedMemPerMultiprocessor": 228 << 10,
        "l2CacheSize": 50,
        "attribute major": 9,
        "attribute warpSize": 32,
        "attribute multiProcessorCount": 132,
        "attribute sharedMemPerBlockOptin": 227 << 10,
        "attribute maxBlocksPerMultiprocessor": 32,
        "attribute reservedSharedMemPerBlock": 1 << 10,
        "attribute cooperativeLaunch": 1,
        "function maxThreadsPerBlock": 1024,
        "function maxDynamicSharedSizeBytes": 227 << 10,
        "pointer type": 1,
    }


def test_copies_are_told_by_where_memory_is(library: ctypes.CDLL, log: Log) -> None:
    """Not by what the caller says, which may be "default"."""
    host, device, other = np.arange(8, dtype=np.float32), malloc(library, 64), malloc(library, 32)
    copy(library, device + 32, host.ctypes.data, 32, ANY)
    copy(library, other, device + 32, 32, DEVICE_TO_DEVICE)
    copy(library, device, device + 32, 16, ANY)
    copy(library, np.empty(8).ctypes.data, host.ctypes.data, 32, ANY)
    copy(library, host.ctypes.data, other, 32, DEVICE_TO_HOST)
    assert counted(log) == {
        "allocations": 2,
        "copies to the device": 1,
        "copies on the device": 2,
        "copies on the host": 1,
        "copies to the host": 1,
    }
    assert [event.bytes for event in log.counts().events if event.kind != "allocations"] == [32, 32, 16, 32, 32]
    assert (ctypes.c_float * 8).from_address(other)[:] == list(range(8))  # what was copied within the device


def test_what_comes_back_counts_up(library: ctypes.CDLL, log: Log) -> None:
    """Whatever lay there: no kernel has written it.  So runs do not differ, and indices are those of different rows."""
    device, host = malloc(library, 44), np.full(44, 255, np.uint8)
    copy(library, host.ctypes.data, device, 44, DEVICE_TO_HOST)
    assert host[:40].view(np.int64).tolist() == [0, 1, 2, 3, 4] and host[40:].view(np.int32).tolist() == [5]
    assert library.cudaFree(ctypes.c_void_p(device)) == 0
    copy(library, device, device, 0, ANY)
    assert counted(log) == {"allocations": 1, "copies to the host": 1, "copies on the host": 1}  # it is the device's no more


def test_launches_go_by_the_names_that_were_registered(library: ctypes.CDLL, log: Log) -> None:
    kernels = {name: ctypes.create_string_buffer(1) for name in (b"_Z3onev", b"_Z3twov")}
    for name, function in kernels.items():
        library.__cudaRegisterFunction(None, function, None, name, -1, None, None, None, None, None)
    size = (ctypes.c_uint * 3)(1, 1, 1)
    for name in (b"_Z3twov", b"_Z3onev", b"_Z3twov"):
        assert library.cudaLaunchKernelExC(size, kernels[name], None) == 0
    assert library.cudaLaunchKernelExC(size, ctypes.create_string_buffer(1), None) == 0
    assert counted(log) == {"launches": 4}
    assert log.counts().by_name() == {"_Z3twov": 2, "_Z3onev": 1, "unknown kernel": 1}


def test_libraries_count_by_what_they_compute(library: ctypes.CDLL, log: Log) -> None:
    for name in (*COMPUTING, "cublasSetStream_v2"):
        assert getattr(library, name)() == 0
    assert [(event.name, event.kind) for event in log.counts().events] == list(COMPUTING.items())


def test_created_things_differ(library: ctypes.CDLL) -> None:
    made = (ctypes.c_void_p * 2)()
    assert library.cublasCreate_v2(ctypes.byref(made)) == 0
    assert library.cublasLtMatmulDescCreate(ctypes.byref(made, 8), 0, 0) == 0
    assert None not in made[:] and made[0] != made[1]


def test_waits_and_fills(library: ctypes.CDLL, log: Log) -> None:
    device = malloc(library, 16)
    log.reset()
    library.cudaStreamSynchronize(None), library.cudaDeviceSynchronize(), library.cudaEventSynchronize(None)
    library.cudaMemsetAsync(ctypes.c_void_p(device), 7, ctypes.c_size_t(16), None)
    library.cudaMemcpy(ctypes.c_void_p(device), ctypes.c_void_p(device), ctypes.c_size_t(8), DEVICE_TO_DEVICE)  # waits, too
    assert counted(log) == {"synchronizations": 4, "memsets": 1, "copies on the device": 1}
    assert set(counted(log)) < set(COUNTED)


def test_without_onnxruntime_gpu(tmp_path: Path) -> None:
    with pytest.raises(ImitationError, match=r"^no onnxruntime-gpu in .*: scripts/cuda_imitation/fetch_onnxruntime_gpu .*$"):
        build(tmp_path, tmp_path / "imitation")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImitationError, match=r"^g\+\+ was not found; install a C\+\+ compiler"):
        compile_library(STUBS, tmp_path / "imitation")
