"""Imitations of the Python modules of TensorRT, whose engines are graphs of a bundle run by ONNX Runtime.

An "engine file" names an ONNX graph and the profiles it was "built" for.  ``execute_async_v3`` reads and writes the raw
addresses that were set, when the stream gets to it.  What TensorRT refuses is refused in the same way (False or None, and a
logged error); what it leaves undefined is a Misuse.

Sources, in the order of the checks: NvInferRuntime.h of 10.3 to 11.1 (quoted where they are), its Python bindings in
python/src/infer/pyCore.cpp, and the developer guide on CUDA graphs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.testing.fakes.cuda import ALIGNMENT, CudaImitation, Misuse, device_of

MAGIC = "imitation of a TensorRT engine"
Shape = tuple[int, ...]


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    BOOL = 4
    BF16 = 7
    INT64 = 8


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    INTERNAL_ERROR, ERROR, WARNING = Severity

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


_DTYPES: dict[int, tuple[DataType, np.dtype[Any]]] = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.dtype(np.float32)),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.dtype(np.float16)),
    onnx.TensorProto.BOOL: (DataType.BOOL, np.dtype(np.bool_)),
    onnx.TensorProto.INT64: (DataType.INT64, np.dtype(np.int64)),
}


class Runtime:
    version = ""

    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self.logger = logger

    def error(self, message: str) -> None:
        self.logger.log(ILogger.ERROR, message)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """ "The engine, or nullptr if it could not be deserialized." """
        try:
            plan = json.loads(bytes(memoryview(serialized_engine)))
            assert plan["magic"] == MAGIC
        except (ValueError, KeyError, AssertionError):
            self.error("IRuntime::deserializeCudaEngine: Error Code 1: Serialization\n(header.magicTag == kMAGIC_TAG failed)")
            return None
        if plan["version"] != self.version:
            self.error(f"The engine plan file is not compatible with this version of TensorRT, expecting {self.version}")
            return None
        return self.make_engine(plan)

    def make_engine(self, plan: dict[str, Any]) -> ICudaEngine:
        raise NotImplementedError


class ICudaEngine:
    """counts: executions by profile."""

    context: type[IExecutionContext]

    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        self.runtime, self.plan = runtime, plan
        model = _model(plan["graph"])
        self.inputs = {value.name: value for value in model.graph.input}
        self.outputs = {value.name: value for value in model.graph.output}
        self.names: list[str] = [*self.inputs, *self.outputs]
        self.caches = dict(plan["caches"])  # output -> input
        self.counts: Counter[int] = Counter()
        self.contexts = 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def value(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]

    def symbols(self, name: str) -> list[int | str]:
        dims = self.value(name).type.tensor_type.shape.dim
        return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(size if isinstance(size, int) else -1 for size in self.symbols(name))

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self.value(name).type.tensor_type.elem_type][0]

    def numpy_dtype(self, name: str) -> np.dtype[Any]:
        return _DTYPES[self.value(name).type.tensor_type.elem_type][1]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name in self.inputs:
            return TensorIOMode.INPUT
        return TensorIOMode.OUTPUT if name in self.outputs else TensorIOMode.NONE

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation(self.plan["locations"].get(name, 0))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        return [tuple(shape) for shape in self.plan["profiles"][profile_index][name]]

    def make_context(self, strategy: ExecutionContextAllocationStrategy, *, specialized: bool) -> IExecutionContext | None:
        if self.plan["no_context"]:
            self.runtime.error("createExecutionContext: Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)")
            return None
        self.contexts += 1
        return self.context(self, strategy, specialized=specialized)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy, *, specialized: bool) -> None:
        self.engine, self.strategy, self.specialized = engine, strategy, specialized
        self.profile = 0  # "The newly created execution context will be assigned optimization profile 0."
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.activations: tuple[int, int] | None = None
        self.unsettled = True  # shapes were changed since the last enqueue
        self.state = 0  # counts modifications

    def _error(self, message: str) -> bool:
        self.engine.runtime.error(f"IExecutionContext::{message}")
        return False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self.strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        if size < self.engine.plan["activations"] or memory % ALIGNMENT:
            raise Misuse(f"activations of {size} bytes at {memory:#x}")
        self.activations, self.state = (memory, size), self.state + 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        device_of(stream_handle)
        if not 0 <= profile_index < len(self.engine.plan["profiles"]):
            self._error("setOptimizationProfileAsync: Error Code 3: API Usage Error (profileIndex out of range)")
            raise RuntimeError("Error in set optimization profile async.")  # what the Python binding makes of it
        self.profile, self.state, self.unsettled = profile_index, self.state + 1, True
        self.shapes.clear()  # "must be called before calling setInputShape() for all dynamic input tensors"
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """ "Each dimension must agree with the network dimension unless the latter was -1." """
        if name not in self.engine.inputs:
            return self._error(f"setInputShape: {name} is no input")
        network, shape = self.engine.get_tensor_shape(name), tuple(shape)
        if len(network) != len(shape) or any(ours not in (-1, size) for ours, size in zip(network, shape, strict=True)):
            return self._error(f"setInputShape: Error Code 3: API Usage Error (dimension mismatch for {name})")
        if -1 in network:
            least, _, largest = self.engine.get_tensor_profile_shape(name, self.profile)
            if any(not low <= size <= high for low, size, high in zip(least, shape, largest, strict=True)):
                return self._error(f"setInputShape: {name} {shape} does not satisfy profile {self.profile}")
        self.shapes[name], self.state, self.unsettled = shape, self.state + 1, True
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """ "The pointer must have at least 256-byte alignment." """
        if name not in self.engine.names:
            return self._error(f"setTensorAddress: {name} is no input or output")
        if memory % ALIGNMENT:
            return self._error(f"setTensorAddress: {name} is not aligned")
        self.addresses[name], self.state = memory, self.state + 1
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        """ "-1 for any dimension" that is not known yet; what is known follows from the input shapes."""
        if name in self.engine.inputs and name in self.shapes:
            return self.shapes[name]
        sizes = self._sizes()
        return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in self.engine.symbols(name))

    def _sizes(self) -> dict[str, int]:
        """As TensorRT's shape inference finds them; checked against what ONNX Runtime makes."""
        sizes: dict[str, int] = {}
        for name, shape in self.shapes.items():
            for symbol, size in zip(self.engine.symbols(name), shape, strict=True):
                if isinstance(symbol, str) and sizes.setdefault(symbol, size) != size:
                    raise Misuse(f"{symbol} is {sizes[symbol]} and, in {name}, {size}")
        if {"sequence", "visual", "visual_keep"} <= set(sizes):
            sizes["survivors"] = sizes["sequence"] - sizes["visual"] + sizes["visual_keep"]
        if {"crops", "steps", "tokens"} <= set(sizes):
            sizes["kept"] = min(sizes["crops"] * sizes["steps"], sizes["tokens"])
        if "patches" in sizes:
            sizes["tokens"] = sizes["patches"] // self.engine.plan["patches_per_token"]
        return sizes

    def execute_async_v3(self, stream_handle: int) -> bool:
        device, stream = device_of(stream_handle)
        engine = self.engine
        if missing := [name for name in engine.names if not self.addresses.get(name)]:
            # "Before calling enqueueV3(), each input must have a non-null address and each output must have ..."
            return self._error(f"enqueueV3: Error Code 3: API Usage Error (no address for {missing[0]})")
        if unset := [name for name in engine.inputs if -1 in engine.get_tensor_shape(name) and name not in self.shapes]:
            return self._error(f"enqueueV3: Error Code 7: Internal Error (the shape of {unset[0]} is not set)")
        if engine.plan["activations"] and self.activations is None:
            return self._error("enqueueV3: Error Code 3: API Usage Error (Parameter check failed, condition: noDeviceMemory)")
        self._check_aliases()
        if engine.plan["fails"]:
            return self._error(engine.plan["fails"])
        # Developer guide: after a change of shapes call enqueueV3 once before the capture; loops cannot be captured.
        can_be_captured = not self.unsettled and engine.plan["capturable"] and self.specialized
        if stream.capture is not None and not can_be_captured:
            stream.invalidated = True
            return self._error("enqueueV3: Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
        self.unsettled = False
        stream.put(self._work(device, captured=stream.capture is not None))
        return True

    def _check_aliases(self) -> None:
        """IKVCacheUpdateLayer: "The output performs in-place updates on the cache tensor, so they must share the same device
        memory address."  Other engines read the input while they write the output.
        """
        for after, before in self.engine.caches.items():
            same = self.addresses[after] == self.addresses[before]
            if same is not self.engine.plan["aliased"]:
                raise Misuse(f"{before} and {after} share an address: {same}")

    def _work(self, device: CudaImitation, *, captured: bool) -> Any:
        """The execution with the addresses and shapes of now.  A context from which a graph was captured may not change after
        that: "Modifying the context from which the graph was captured will result in undefined behavior".
        """
        engine, profile, state = self.engine, self.profile, self.state
        shapes = {name: self.get_tensor_shape(name) for name in engine.names}
        addresses, activations = dict(self.addresses), self.activations

        def array(name: str) -> NDArray[Any]:
            dtype = engine.numpy_dtype(name)
            nbytes = int(np.prod(shapes[name])) * dtype.itemsize
            return device.view(addresses[name], nbytes).view(dtype).reshape(shapes[name])

        def work() -> None:
            if captured and self.state != state:
                raise device.misuse(f"a context of {engine.plan['graph']} was modified before its captured work ran")
            engine.counts[profile] += 1
            feeds = {name: array(name).copy() for name in engine.inputs}
            if activations is not None and engine.plan["activations"]:
                device.view(activations[0], engine.plan["activations"]).fill(0xFF)  # used as scratch
            results = _session(engine.plan["graph"], engine.plan["weights"]).run(list(engine.outputs), feeds)
            for name, result in zip(engine.outputs, results, strict=True):
                if result.shape != shapes[name]:
                    raise device.misuse(f"{name} is {result.shape}, and TensorRT would have said {shapes[name]}")
                array(name)[...] = result

        return work


class _Alias(ICudaEngine):
    """Since 10.15."""

    def get_aliased_input_tensor(self, name: str) -> str | None:
        """ "nullptr if tensorName is not an output tensor or the output does not alias with any input" """
        return self.caches.get(name) if self.plan["aliased"] else None


class _Engine10(ICudaEngine):
    context = IExecutionContext

    @property
    def device_memory_size_v2(self) -> int:
        return int(self.plan["activations"])

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        return self.make_context(strategy, specialized=True)


class _Engine11(_Engine10, _Alias):
    pass


class IRuntimeCache:
    """Holds one byte for every context, as if each had compiled a kernel."""

    def __init__(self) -> None:
        self.content = b"kernels"

    def deserialize(self, blob: bytes) -> bool:
        """ "rejected (leaving this cache unchanged) on any mismatch" """
        if not blob.startswith(b"kernels"):
            return False
        self.content = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self.content


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cache: Any = None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class _ContextRtx(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        device_of(stream)
        return self.specialized and bool(self.engine.plan["capturable"])


class _EngineRtx(_Alias):
    context = _ContextRtx

    @property
    def device_memory_size_v2(self) -> int:
        return int(self.plan["activations"])

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any) -> Any:
        """A lazily specialized context swaps kernels under a captured graph."""
        lazy = runtime_config.dynamic_shapes_kernel_specialization_strategy == DynamicShapesKernelSpecializationStrategy.LAZY
        runtime_config.cache.content += b"."
        return self.make_context(runtime_config.strategy, specialized=not lazy)


@cache
def _model(graph: str) -> onnx.ModelProto:
    return onnx.load(graph, load_external_data=False)


@cache
def _session(graph: str, weights: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
    return ort.InferenceSession(Path(graph).read_bytes(), options, providers=["CPUExecutionProvider"])


def module(name: str, version: str) -> ModuleType:
    """``tensorrt`` of some version, or ``tensorrt_rtx``, with what that one has."""
    rtx, numbers = name == "tensorrt_rtx", tuple(int(part) for part in version.split(".")[:2])
    engine: type[ICudaEngine] = _EngineRtx if rtx else _Engine11 if numbers >= (10, 15) else _Engine10
    made = ModuleType(name)
    own = type("Runtime", (Runtime,), {"version": version, "make_engine": lambda self, plan: engine(self, plan)})
    shared = (DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy, ILogger)
    for item in (own, *shared, *((DynamicShapesKernelSpecializationStrategy,) if rtx else ())):
        setattr(made, item.__name__, item)
    made.ICudaEngine, made.IExecutionContext = engine, _ContextRtx if rtx else IExecutionContext  # type: ignore[attr-defined]
    made.__version__ = version  # type: ignore[attr-defined]
    return made
