"""Fakes of TensorRT's execution contexts: the graph of an engine, run by ONNX Runtime on the addresses that were set.

``execute_async_v3`` reads and writes them when the stream gets to it.  Sources: as of ``tensorrt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.testing.fakes.cuda import ALIGNMENT, FakeCuda, Misuse, device_of
from sts_export.testing.fakes.tensorrt_enums import ExecutionContextAllocationStrategy

Shape = tuple[int, ...]


class IExecutionContext:
    """engine: an ICudaEngine; ``state`` counts modifications."""

    def __init__(self, engine: Any, strategy: ExecutionContextAllocationStrategy, *, specialized: bool) -> None:
        self.engine, self.strategy, self.specialized = engine, strategy, specialized
        self.profile = 0  # "The newly created execution context will be assigned optimization profile 0."
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.activations: tuple[int, int] | None = None
        self.unsettled = True  # shapes were changed since the last enqueue
        self.state = 0

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
        rows, visual = ["sequence", "survivors"], ["visual", "visual_keep"]  # of the first two decoder parts
        for part in range(2, 8):
            rows.append(f"survivors_{part}")
            visual.append(f"visual_keep_{part}")
        for before, after in zip(zip(rows, visual, strict=True), zip(rows[1:], visual[1:], strict=True), strict=False):
            if {*before, after[1]} <= set(sizes):
                sizes[after[0]] = sizes[before[0]] - sizes[before[1]] + sizes[after[1]]
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

    def _work(self, device: FakeCuda, *, captured: bool) -> Any:
        """The execution with the addresses and shapes of now.  A context from which a graph was captured may not change after
        that: "Modifying the context from which the graph was captured will result in undefined behavior".
        """
        engine, profile, state = self.engine, self.profile, self.state
        shapes = {name: self.get_tensor_shape(name) for name in engine.names}
        addresses, activations = dict(self.addresses), self.activations
        allocations = {name: device.allocation(address) for name, address in addresses.items()}

        def array(name: str) -> NDArray[Any]:
            dtype = engine.numpy_dtype(name)
            nbytes = int(np.prod(shapes[name])) * dtype.itemsize
            content: NDArray[Any] = device.view(addresses[name], nbytes).view(dtype).reshape(shapes[name])
            return content

        def work() -> None:
            if captured and self.state != state:
                raise device.misuse(f"a context of {engine.plan['graph']} was modified before its captured work ran")
            for name, address in addresses.items():
                device.check_same(address, allocations[name], f"{name} of {engine.plan['graph']}")
            engine.counts[profile] += 1
            feeds = {name: array(name).copy() for name in engine.inputs}
            if activations is not None and engine.plan["activations"]:
                device.view(activations[0], engine.plan["activations"]).fill(0xFF)  # used as scratch
            self._follow_slots(device, addresses, shapes, feeds)
            results = _session(engine.plan["graph"], engine.plan["weights"]).run(list(engine.outputs), feeds)
            for name, result in zip(engine.outputs, results, strict=True):
                if result.shape != shapes[name]:
                    raise device.misuse(f"{name} is {result.shape}, and TensorRT would have said {shapes[name]}")
                array(name)[...] = result

        return work

    def _follow_slots(
        self, device: FakeCuda, addresses: dict[str, int], shapes: dict[str, Shape], feeds: dict[str, NDArray[Any]]
    ) -> None:
        """What this execution reads and writes in caches, and that nothing else lies there."""
        engine = self.engine
        for name in engine.outputs:
            nbytes = int(np.prod(shapes[name])) * engine.numpy_dtype(name).itemsize
            if name not in engine.caches:
                device.slots.check_foreign(addresses[name], nbytes, name)
                continue
            before, (slots, _, capacity, _) = engine.caches[name], shapes[name]
            device.slots.call(
                f"{before} of {Path(engine.plan['graph']).stem}",
                addresses[before],
                addresses[name],
                nbytes // slots,
                feeds["write_index"].tolist(),
                shapes["position_ids"][-1],
                capacity,
            )


class ContextRtx(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        device_of(stream)
        return self.specialized and bool(self.engine.plan["capturable"])


@cache
def _session(graph: str, weights: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
    return ort.InferenceSession(Path(graph).read_bytes(), options, providers=["CPUExecutionProvider"])
