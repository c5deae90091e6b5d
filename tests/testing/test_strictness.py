"""The fakes see what would be undefined behaviour on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_export.backends.cuda_runtime import Cuda, PinnedMemory
from sts_export.backends.tensorrt.memory import host_view
from sts_export.bundle.manifest import open_bundle
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from sts_export.testing.fakes import tensorrt
from sts_export.testing.fakes.cuda import FakeCuda, Misuse, cudaError_t
from sts_export.testing.fakes.engines import ACTIVATIONS, VERSIONS, write_engines
from sts_export.testing.fakes.tensorrt_enums import ILogger
from tests.support.pipelines import LAYERS, export_to


def pinned_with(cuda: Cuda, values: list[int]) -> PinnedMemory:
    memory = cuda.allocate_pinned(8 * len(values))
    host_view(memory.address, (len(values),), "int64")[:] = values
    return memory


def read(cuda: Cuda, address: int, count: int) -> list[int]:
    back = cuda.allocate_pinned(8 * count)
    cuda.to_host(back.address, address, 8 * count)
    cuda.synchronize()
    numbers: list[int] = host_view(back.address, (count,), "int64").tolist()
    return numbers


# CUDA


def test_a_copy_takes_what_is_there_when_it_runs() -> None:
    """Staging memory that is used again before the copy is done gives the wrong numbers."""
    cuda = Cuda(FakeCuda())
    target, source = cuda.allocate(16, "a test"), pinned_with(cuda, [1, 2])
    cuda.to_device(target.address, source.address, 16)
    host_view(source.address, (2,), "int64")[:] = [8, 9]
    assert read(cuda, target.address, 2) == [8, 9]


def test_fresh_and_freed_memory_is_garbage() -> None:
    cuda = Cuda(FakeCuda())
    memory = cuda.allocate(64, "a test")
    assert read(cuda, memory.address, 8) == [-1] * 8 and memory.address % 256 == 0


@pytest.mark.parametrize("wrong", ["pageable", "beyond", "freed", "host as device"])
def test_copies_of_memory_that_is_not_there(wrong: str) -> None:
    device = FakeCuda()
    cuda = Cuda(device)
    target, source = cuda.allocate(16, "a test"), pinned_with(cuda, [1, 2])
    pageable = np.zeros(2, np.int64)
    address, nbytes, to = source.address, 16, target.address
    if wrong == "pageable":
        address = pageable.ctypes.data
    elif wrong == "beyond":
        nbytes = 17
    elif wrong == "freed":
        target.free()
    else:
        to = source.address
    with pytest.raises(Misuse, match="are not in one live"):
        cuda.to_device(to, address, nbytes)
    assert device.problems


def test_freeing_under_running_work() -> None:
    device = FakeCuda()
    cuda = Cuda(device)
    memory = cuda.allocate(16, "a test")
    cuda.clear(memory.address, 16)
    with pytest.raises(Misuse, match="while work is waiting"):
        device.cudaFree(memory.address)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize", "cudaHostAlloc"])
def test_calls_that_break_a_capture(call: str) -> None:
    device = FakeCuda()
    cuda = Cuda(device)
    arguments = {"cudaMalloc": (16,), "cudaHostAlloc": (16, 0), "cudaStreamSynchronize": (cuda.stream,)}[call]
    device.cudaStreamBeginCapture(cuda.stream, device.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    assert getattr(device, call)(*arguments)[0] == cudaError_t.cudaErrorStreamCaptureUnsupported
    assert device.cudaStreamEndCapture(cuda.stream) == (cudaError_t.cudaErrorStreamCaptureInvalidated, None)


def test_a_captured_graph_runs_when_launched() -> None:
    cuda = Cuda(FakeCuda())
    target, source = cuda.allocate(16, "a test"), pinned_with(cuda, [1, 2])
    graph = cuda.capture(lambda: cuda.to_device(target.address, source.address, 16))
    assert read(cuda, target.address, 2) == [-1, -1]
    for numbers in ([3, 4], [5, 6]):
        host_view(source.address, (2,), "int64")[:] = numbers
        cuda.launch(graph)
        assert read(cuda, target.address, 2) == numbers
    graph.free()
    with pytest.raises(Misuse, match="destroyed graph"):
        cuda.launch(graph)


def test_garbage_waits_for_the_end_of_a_capture() -> None:
    """Collected in it, memory that a cycle holds would be freed in it."""
    device = FakeCuda()
    cuda = Cuda(device)
    held = [cuda.allocate(16, "a test")]

    def work() -> None:
        cycle: list[Any] = [held.pop()]
        cycle.append(cycle)
        del cycle
        assert len([[] for _ in range(1000)]) == 1000  # objects enough to start a collection

    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        cuda.capture(work)
    finally:
        gc.set_threshold(*thresholds)
    assert gc.isenabled() and device.problems == []
    gc.collect()
    assert device.live(True) == 0


# TensorRT


class Contexts:
    """Contexts of a selector and of an LLM-lower, with memory for all their tensors."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.device = FakeCuda()
        self.cuda = Cuda(self.device)
        self.module = tensorrt.module("tensorrt", VERSIONS["tensorrt"])
        self.errors: list[str] = []
        owner = self

        class Logger(ILogger):
            def log(self, severity: Any, msg: str) -> None:
                owner.errors.append(msg)

        self.bundle = open_bundle(folder)
        self.engines = write_engines(self.bundle, **settings)
        self.runtime = self.module.Runtime(Logger())
        self.scratch = self.cuda.allocate(ACTIVATIONS, "a test")

    def context(self, graph: str, profile: int = 0) -> Any:
        """Ready for a prompt of four tokens without image; caches are bound in place."""
        engine = self.runtime.deserialize_cuda_engine(self.engines.file(graph).read_bytes())
        context = engine.create_execution_context(self.module.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(self.scratch.address, self.scratch.nbytes)
        context.set_optimization_profile_async(profile, int(self.cuda.stream))
        return context

    def ready(self) -> Any:
        context, sizes = self.context("llm_lower"), {"batch": 1, "sequence": 4, "visual": 1, "visual_keep": 1}
        contract = self.bundle.manifest.graphs["llm_lower"]
        self.memory = {}
        for spec in (*contract.inputs, *contract.outputs):
            memory = self.cuda.allocate(1 << 16, "a test")
            self.cuda.clear(memory.address, 1 << 16)
            self.memory[spec.name] = memory
            context.set_tensor_address(spec.name, memory.address)
        for spec in contract.inputs:
            assert context.set_input_shape(spec.name, [one if isinstance(one, int) else sizes[one] for one in spec.shape])
        for before, after in contract.caches:
            context.set_tensor_address(after, self.memory[before].address)
        return context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("strictness")
    return export_to(write_random_llava(base / "checkpoint", RandomLlava(layers=LAYERS)), base / "bundle")


def test_a_ready_context_runs(folder: Path) -> None:
    """What the cases below break."""
    contexts = Contexts(folder)
    assert contexts.ready().execute_async_v3(int(contexts.cuda.stream))
    contexts.cuda.synchronize()
    assert contexts.errors == [] and contexts.device.problems == []


Break = Callable[[Any, Contexts], Any]
REFUSED: dict[str, tuple[Break, str]] = {
    "no address": (lambda context, _: context.set_tensor_address("last_row", 0), "no address for last_row"),
    "no activations": (lambda context, _: setattr(context, "activations", None), "noDeviceMemory"),
    "shapes gone with the profile": (
        lambda context, own: context.set_optimization_profile_async(1, int(own.cuda.stream)),
        "the shape of input_ids is not set",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_executions_that_tensorrt_refuses(folder: Path, name: str) -> None:
    contexts = Contexts(folder)
    context, (change, said) = contexts.ready(), REFUSED[name]
    change(context, contexts)
    assert context.execute_async_v3(int(contexts.cuda.stream)) is False and said in contexts.errors[-1]


def test_arguments_that_tensorrt_refuses(folder: Path) -> None:
    contexts = Contexts(folder)
    context = contexts.ready()
    assert not context.set_tensor_address("last_row", contexts.scratch.address + 8) and "not aligned" in contexts.errors[-1]
    assert not context.set_tensor_address("nobody", contexts.scratch.address)
    assert not context.set_input_shape("last_row", (1,)) and not context.set_input_shape("input_ids", (1, 4, 1))
    assert not context.set_input_shape("input_ids", (3, 4)) and "does not satisfy profile 0" in contexts.errors[-1]
    decode = contexts.context("llm_lower", profile=1)
    assert not decode.set_input_shape("input_ids", (1, 4)) and "does not satisfy profile 1" in contexts.errors[-1]
    with pytest.raises(RuntimeError, match="profile async"):
        context.set_optimization_profile_async(2, int(contexts.cuda.stream))
    with pytest.raises(Misuse, match="is no stream"):
        context.execute_async_v3(0)


def test_aliased_caches_have_one_address(folder: Path) -> None:
    contexts = Contexts(folder)
    context = contexts.ready()
    context.set_tensor_address("key_cache_out.0", contexts.memory["key_cache_out.0"].address)
    with pytest.raises(Misuse, match=r"key_cache\.0 and key_cache_out\.0 share an address: False"):
        context.execute_async_v3(int(contexts.cuda.stream))


def test_other_caches_have_two(folder: Path) -> None:
    contexts = Contexts(folder, aliased=False)
    context = contexts.ready()
    with pytest.raises(Misuse, match="share an address: True"):
        context.execute_async_v3(int(contexts.cuda.stream))


def test_buffers_that_are_too_small(folder: Path) -> None:
    contexts = Contexts(folder)
    context = contexts.ready()
    small = contexts.cuda.allocate(256, "a test")
    context.set_tensor_address("hidden_states", small.address)
    assert context.execute_async_v3(int(contexts.cuda.stream))
    with pytest.raises(Misuse, match="are not in one live device allocation"):
        contexts.cuda.synchronize()


def test_shapes_must_be_settled_before_a_capture(folder: Path) -> None:
    contexts = Contexts(folder)
    context, stream = contexts.ready(), int(contexts.cuda.stream)
    mode = contexts.device.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    contexts.device.cudaStreamBeginCapture(stream, mode)
    assert not context.execute_async_v3(stream)
    assert contexts.device.cudaStreamEndCapture(stream)[0] == cudaError_t.cudaErrorStreamCaptureInvalidated
    assert context.execute_async_v3(stream)
    contexts.device.cudaStreamBeginCapture(stream, mode)
    assert context.execute_async_v3(stream)
    assert contexts.device.cudaStreamEndCapture(stream)[0] == cudaError_t.cudaSuccess


def test_a_captured_context_may_not_change(folder: Path) -> None:
    contexts = Contexts(folder)
    context, stream = contexts.ready(), int(contexts.cuda.stream)
    context.execute_async_v3(stream)
    contexts.cuda.synchronize()
    graph = contexts.cuda.capture(lambda: context.execute_async_v3(stream))
    contexts.cuda.launch(graph)
    contexts.cuda.synchronize()
    context.set_tensor_address("last_row", contexts.memory["kept_rows"].address)
    contexts.cuda.launch(graph)
    with pytest.raises(Misuse, match="was modified"):
        contexts.cuda.synchronize()
