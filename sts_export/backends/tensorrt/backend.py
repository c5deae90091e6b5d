"""The graphs of a bundle on TensorRT or TensorRT for RTX, with everything between them left on the GPU.

All work is on one stream, in order.  The host waits for what it fetches: each image's kept tokens, from which the rows and
positions of the prompt follow, and the logits from which the next token is sampled.  So the times of the vision encoder and
of LLM-lower are those of enqueueing them; the waiting is in the selector's and in LLM-upper's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.cuda_runtime import Cuda, open_cuda
from sts_export.backends.protocol import Feeds
from sts_export.backends.tensorrt.api import KernelCache, logger_of
from sts_export.backends.tensorrt.caches import TensorRtCaches
from sts_export.backends.tensorrt.decode import DecodeStep, step_key
from sts_export.backends.tensorrt.engine import Engine, Session, check_batch
from sts_export.backends.tensorrt.memory import DevicePool, DeviceTensor, Staging, resolve
from sts_export.backends.tensorrt.part_caches import PartCaches
from sts_export.bundle.manifest import Bundle
from sts_export.dtypes import numpy_dtype
from sts_export.errors import BackendError
from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.sizes import derived_sizes
from sts_export.tensorrt.plugins import load_library
from sts_export.tensorrt.profiles import PREFILL
from sts_export.tensorrt.record import EngineSet, open_engines
from sts_export.tensorrt.runtimes import Runtime, load

KERNELS = "kernels.cache"  # in the folder of the engines


class TensorRtBackend:
    """See :class:`sts_export.backends.protocol.Backend`.  One call at a time: threads wait for each other.

    Args:
        bundle: that the engines were built from.
        engines: checked against this machine.
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: the device and the stream.

    Raises:
        BackendError: an engine is not what the bundle needs, or does not fit into memory.
    """

    def __init__(self, bundle: Bundle, engines: EngineSet, trt: ModuleType, cuda: Cuda) -> None:
        record = engines.record
        self.max_batch = record.max_batch
        self._cuda, self._lock = cuda, threading.RLock()
        self._parts = tuple(part.name for part in bundle.manifest.pruning.parts)
        self._tower = bundle.manifest.model.tower
        rebuild = f"sts-export build {bundle.folder} --runtime {record.runtime}"
        self._session = session = Session(trt, cuda, rebuild, record.max_batch, KernelCache(engines.folder / KERNELS))
        self._save_kernels = weakref.finalize(self, session.kernels.save)
        self._engines = {
            name: Engine(session, engines.file(name), bundle.manifest.graphs[name], aliased=record.graphs[name].aliased_caches)
            for name in bundle.manifest.graphs
        }
        # No two contexts work at the same time, so all share what the largest needs.  Captured graphs hold its address.
        largest = max(engine.activation_bytes for engine in self._engines.values())
        session.activations = cuda.allocate(largest, "the engines' activations") if largest else None
        self._contexts = {name: engine.take_context(PREFILL) for name, engine in self._engines.items()}
        self._pool, self._staging = DevicePool(cuda), Staging(cuda)
        self._no_visual = {
            (name, spec.name): self._zeros(resolve(spec, {"batch": 1, "visual": 1}), spec.dtype)
            for name, engine in self._engines.items()
            for spec in engine.contract.inputs
            if spec.may_be_absent
        }
        self._caches: weakref.WeakSet[TensorRtCaches] = weakref.WeakSet()
        self._closed = False

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """Kept for prompts without pictures; an engine may multiply it by a mask, and NaN times zero is NaN."""
        tensor = self._pool.take(shape, dtype)
        self._cuda.clear(tensor.address, tensor.nbytes)
        return tensor

    # Life

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free all that the backend holds on the GPU, its caches included; it is of no use afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._save_kernels()
            for caches in list(self._caches):
                caches.close()
            self._contexts.clear()
            self._engines.clear()
            if self._session.activations is not None:
                self._session.activations.free()
            del self._session, self._no_visual, self._staging
            self._pool.close()

    def _open(self) -> Session:
        if self._closed:
            raise BackendError("the TensorRT backend was closed; open the bundle again")
        self._cuda.activate()
        return self._session

    # Backend

    def new_caches(self, slots: int) -> TensorRtCaches:
        with self._lock:
            check_batch(self._open(), slots)
            engines = [self._engines[name] for name in self._parts]
            parts = {
                engine.contract.name: PartCaches(self._cuda, engine.contract, slots, aliased=engine.aliased)
                for engine in engines
            }
            caches = TensorRtCaches(parts, slots)
            self._caches.add(caches)
            return caches

    def run(
        self,
        graph: str,
        inputs: Feeds,
        *,
        caches: TensorRtCaches | None = None,
        slot: int | None = None,
        fetch: Collection[str] = (),
    ) -> Mapping[str, Any]:
        with self._lock:
            self._open()
            contract, context = self._engines[graph].contract, self._contexts[graph]
            given = {spec.name: self._on_device(graph, spec, inputs) for spec in contract.own_inputs}
            sizes = contract.sizes({name: tensor.shape for name, tensor in given.items()})
            sizes |= self._tower.derived_sizes(sizes) if graph == "vision_encoder" else derived_sizes(contract, sizes)
            outputs = {spec.name: self._pool.take(resolve(spec, sizes), spec.dtype) for spec in contract.own_outputs}
            if contract.caches:
                assert caches is not None and slot is not None, f"{graph} has caches"
                part, write_index = caches.parts[graph], inputs["write_index"]
                part.check_slot(slot, write_index, given["position_ids"].shape[-1])
                context.bind({**given, **part.slot_bindings(slot, int(write_index[0])), **outputs})
                context.enqueue()
                part.slot_written(slot, int(write_index[0]))
            else:
                context.bind({**given, **outputs})
                context.enqueue()
            return {name: self._staging.download(one) if name in fetch else one for name, one in outputs.items()}

    def _on_device(self, graph: str, spec: TensorSpec, inputs: Feeds) -> DeviceTensor:
        """An input, uploaded where it comes from the host; floats come as float32 whatever the engines take."""
        value = inputs.get(spec.name)
        if isinstance(value, DeviceTensor):
            return value
        if value is None and spec.name not in inputs and spec.may_be_absent:
            return self._no_visual[graph, spec.name]
        tensor = self._pool.take(inputs[spec.name].shape, spec.dtype)
        self._staging.upload(inputs[spec.name].astype(numpy_dtype(spec.dtype), copy=False), tensor.address)
        return tensor

    def decode(self, caches: TensorRtCaches, inputs: Mapping[str, Feeds]) -> NDArray[np.float32]:
        with self._lock:
            self._open()
            write_index = {name: inputs[name]["write_index"] for name in caches.parts}
            for name, part in caches.parts.items():
                part.check_step(write_index[name])
            slots = len(write_index[self._parts[0]])
            key = step_key(caches.parts.values(), slots, inputs)
            step = caches.steps.get(key)
            if step is None:
                engines = [self._engines[name] for name in self._parts]
                step = caches.steps[key] = DecodeStep(engines, list(caches.parts.values()), slots, key[-1])
            logits = step.run(inputs)
            for name, part in caches.parts.items():
                part.stepped(write_index[name])
            return logits

    def step_slots(self, needed: int, slots: int) -> int:
        """A power of two: every number of slots has contexts, buffers and a captured graph of its own."""
        return min(slots, 1 << (needed - 1).bit_length())

    def rows(self, tensor: DeviceTensor, count: int) -> DeviceTensor:
        return tensor.first(count)

    def joined(self, tensors: Sequence[DeviceTensor]) -> DeviceTensor:
        with self._lock:
            self._open()
            first = tensors[0]
            shape = (1, sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
            if len(tensors) == 1:
                return DeviceTensor(first.address, shape, first.dtype, first.owner)
            together = self._pool.take(shape, first.dtype)
            address = together.address
            for tensor in tensors:
                self._cuda.on_device(address, tensor.address, tensor.nbytes)
                address += tensor.nbytes
            return together

    def fetch(self, tensor: DeviceTensor) -> NDArray[Any]:
        with self._lock:
            self._open()
            return self._staging.download(tensor)


def open_tensorrt_backend(bundle: Bundle, runtime: Runtime, *, target: str | None = None) -> TensorRtBackend:
    """The backend on this machine's GPU.

    Args:
        target: folder of the engines; None takes those that fit.

    Raises:
        BundleError: no engines, or none that fit; says how to build them.
        BackendError: TensorRT, cuda-bindings or a GPU is missing, or the engines do not load.
    """
    engines = open_engines(bundle, runtime, target=target)
    trt, cuda = load(runtime), open_cuda()
    if engines.plugin_library is not None:
        load_library(trt, logger_of(trt)[0], engines.plugin_library)
    return TensorRtBackend(bundle, engines, trt, cuda)
