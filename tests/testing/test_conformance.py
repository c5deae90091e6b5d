"""The fakes have nothing that the real modules lack, and call it the same: what runs on them uses real names only.

Where the modules are installed; no GPU is needed.
"""

from __future__ import annotations

import inspect
import re
from enum import IntEnum
from typing import Any

import pytest

from sts_export.testing.fakes import cuda, tensorrt
from sts_export.testing.fakes.engines import VERSIONS

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
FAKE = tensorrt.module("tensorrt_rtx", VERSIONS["tensorrt-rtx"])
CLASSES = {
    "Runtime": FAKE.Runtime,
    "ICudaEngine": FAKE.ICudaEngine,
    "IExecutionContext": FAKE.IExecutionContext,
    "ILogger": FAKE.ILogger,
    "IRuntimeConfig": tensorrt.IRuntimeConfig,
    "IRuntimeCache": tensorrt.IRuntimeCache,
}
ENUMS = [item for item in vars(FAKE).values() if inspect.isclass(item) and issubclass(item, IntEnum)]
# Of the fakes, for tests.
OWN = {
    "Runtime": {"version", "make_engine", "error"},
    "ICudaEngine": {"context", "make_context", "value", "symbols", "numpy_dtype"},
    "IExecutionContext": set(),
}


def public(kind: type) -> dict[str, Any]:
    return {name: item for name in dir(kind) if not name.startswith("_") for item in [inspect.getattr_static(kind, name)]}


def documented(method: Any) -> list[list[str]]:
    """Parameter names of every overload, from pybind11's signatures."""
    lines = re.findall(r"^\s*(?:\d+\. )?\w+\(self: [^,)]+(?:, )?(.*)\) ->", str(method.__doc__), re.MULTILINE)
    return [re.findall(r"(?:^|, )(\w+): ", line) for line in lines]


@pytest.mark.parametrize("name", CLASSES)
def test_members_are_tensorrts(name: str) -> None:
    real, checked = getattr(trt, name), 0
    for member, item in public(CLASSES[name]).items():
        if member in OWN.get(name, ()) or isinstance(item, type):
            continue
        assert hasattr(real, member), f"{name}.{member}"
        checked += 1
        if inspect.isfunction(item):
            ours = list(inspect.signature(item).parameters)[1:]
            assert ours in documented(getattr(real, member)), f"{name}.{member}{ours}"
    assert checked


def test_settings_of_a_runtime_config_are_tensorrts() -> None:
    settings = set(vars(tensorrt.IRuntimeConfig())) - {"strategy", "cache"}
    assert settings and all(hasattr(trt.IRuntimeConfig, name) for name in settings)


@pytest.mark.parametrize("ours", ENUMS, ids=lambda kind: kind.__name__)
def test_enums_are_tensorrts(ours: type[IntEnum]) -> None:
    real = getattr(trt, ours.__name__)
    assert {one.name: one.value for one in ours} == {one.name: int(getattr(real, one.name)) for one in ours}
    assert hasattr(trt.ILogger, "INTERNAL_ERROR")


@pytest.mark.parametrize("name", cuda.functions())
def test_functions_are_cudas(name: str) -> None:
    """Same names, as many parameters, as many results."""
    real = getattr(runtime, name)
    ours = list(inspect.signature(getattr(cuda.FakeCuda, name)).parameters)[1:]
    (signature,) = re.findall(rf"^{name}\((.*)\)$", str(real.__doc__), re.MULTILINE)[:1]
    theirs = [part for part in signature.split(", ") if part]
    assert len(ours) == len(theirs), signature


@pytest.mark.parametrize(
    "ours", [cuda.cudaError_t, cuda.cudaMemcpyKind, cuda.cudaStreamCaptureMode], ids=lambda one: one.__name__
)
def test_enums_are_cudas(ours: type[IntEnum]) -> None:
    real = getattr(runtime, ours.__name__)
    assert {one.name: one.value for one in ours} == {one.name: int(getattr(real, one.name)) for one in ours}


def test_constants_are_cudas() -> None:
    assert runtime.cudaHostAllocDefault == cuda.FakeCuda.cudaHostAllocDefault
    assert runtime.cudaStreamNonBlocking == cuda.FakeCuda.cudaStreamNonBlocking


def test_cuda_takes_our_arguments_and_answers_in_our_shapes() -> None:
    """Without a driver every call is refused, but after its arguments were converted."""
    error, _ = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    kind, mode = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    stream, graph, executable = runtime.cudaStream_t(0), runtime.cudaGraph_t(0), runtime.cudaGraphExec_t(0)
    results = {
        "cudaGetDevice": runtime.cudaGetDevice(),
        "cudaSetDevice": runtime.cudaSetDevice(0),
        "cudaMemGetInfo": runtime.cudaMemGetInfo(),
        "cudaMalloc": runtime.cudaMalloc(256),
        "cudaHostAlloc": runtime.cudaHostAlloc(256, runtime.cudaHostAllocDefault),
        "cudaFree": runtime.cudaFree(1 << 40),
        "cudaFreeHost": runtime.cudaFreeHost(1 << 40),
        "cudaStreamCreateWithFlags": runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking),
        "cudaStreamSynchronize": runtime.cudaStreamSynchronize(stream),
        "cudaMemcpyAsync": runtime.cudaMemcpyAsync(1 << 40, 1 << 41, 256, kind, stream),
        "cudaMemsetAsync": runtime.cudaMemsetAsync(1 << 40, 0, 256, stream),
        "cudaStreamBeginCapture": runtime.cudaStreamBeginCapture(stream, mode),
        "cudaStreamEndCapture": runtime.cudaStreamEndCapture(stream),
        "cudaGraphInstantiate": runtime.cudaGraphInstantiate(graph, 0),
        "cudaGraphLaunch": runtime.cudaGraphLaunch(executable, stream),
    }
    shapes = {name: inspect.signature(getattr(cuda.FakeCuda, name)).return_annotation for name in results}
    for name, result in results.items():
        assert result[0] != runtime.cudaError_t.cudaSuccess, name
        assert len(result) == shapes[name].count(",") + 1, f"{name}: {shapes[name]}"
    assert int(stream) == 0 and runtime.cudaGetErrorName(runtime.cudaError_t.cudaErrorNoDevice)[1] == b"cudaErrorNoDevice"
