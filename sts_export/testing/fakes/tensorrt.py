"""Fakes of the Python modules of TensorRT, whose engines are graphs of a bundle run by ONNX Runtime.

An "engine file" names an ONNX graph and the profiles it was "built" for.  ``execute_async_v3`` reads and writes the raw
addresses that were set, when the stream gets to it.  What TensorRT refuses is refused in the same way (False or None, and a
logged error); what it leaves undefined is a Misuse.

Sources, in the order of the checks: NvInferRuntime.h of 10.3 to 11.1 (quoted where they are), its Python bindings in
python/src/infer/pyCore.cpp, and the developer guide on CUDA graphs.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from sts_export.dtypes import ELEMENT_TYPES, numpy_dtype
from sts_export.testing.fakes.execution import ContextRtx, IExecutionContext, Shape
from sts_export.testing.fakes.tensorrt_enums import (
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    ILogger,
    TensorIOMode,
    TensorLocation,
)

MAGIC = "fake TensorRT engine"
# What the fakes have for themselves; every other public method and property is TensorRT's.
OWN = frozenset({"error", "make_engine", "make_context", "value", "symbols", "numpy_dtype", "version"})
_DTYPES = {
    element.onnx: (DataType[element.tensorrt], numpy_dtype(name)) for name, element in ELEMENT_TYPES.items() if element.tensorrt
}


class Runtime(ABC):
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

    @abstractmethod
    def make_engine(self, plan: dict[str, Any]) -> ICudaEngine: ...


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


class _EngineRtx(_Alias):
    context = ContextRtx

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


def module(name: str, version: str) -> ModuleType:
    """``tensorrt`` of some version, or ``tensorrt_rtx``, with what that one has."""
    rtx, numbers = name == "tensorrt_rtx", tuple(int(part) for part in version.split(".")[:2])
    engine: type[ICudaEngine] = _EngineRtx if rtx else _Engine11 if numbers >= (10, 15) else _Engine10
    made = ModuleType(name)
    own = type("Runtime", (Runtime,), {"version": version, "make_engine": lambda self, plan: engine(self, plan)})
    shared = (DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy, ILogger)
    for item in (own, *shared, *((DynamicShapesKernelSpecializationStrategy,) if rtx else ())):
        setattr(made, item.__name__, item)
    made.ICudaEngine, made.IExecutionContext = engine, ContextRtx if rtx else IExecutionContext  # type: ignore[attr-defined]
    made.__version__ = version  # type: ignore[attr-defined]
    return made
