"""The four graphs on TensorRT or TensorRT for RTX, with everything between them left on the GPU.

All work is on one stream, in order.  The host waits for it twice: for each image's kept tokens, from which the rows and
positions of the prompt follow, and for the logits from which the next token is sampled.  So the times of the vision encoder and
of LLM-lower are those of enqueueing them; the waiting is in the selector's and in LLM-upper's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.cuda_runtime import Cuda, open_cuda
from sts_export.backends.protocol import LowerInputs, LowerOutputs
from sts_export.backends.tensorrt.api import KernelCache, logger_of
from sts_export.backends.tensorrt.caches import PartCaches, TensorRtCaches
from sts_export.backends.tensorrt.decode import DecodeStep, decode_feeds
from sts_export.backends.tensorrt.engine import Engine, Session, check_batch
from sts_export.backends.tensorrt.memory import DevicePool, DeviceTensor, Staging, numpy_dtype, resolve
from sts_export.bundle.manifest import Bundle
from sts_export.errors import BackendError
from sts_export.graphs.configs import QwenVisionConfig
from sts_export.graphs.contracts import GraphContract
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
        self._decoder = bundle.manifest.model.decoder
        vision = bundle.manifest.model.vision
        self._patches_per_token = vision.merge_size**2 if isinstance(vision, QwenVisionConfig) else 1
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
        self._contexts = {name: self._engines[name].take_context(PREFILL) for name in bundle.manifest.graphs}
        self._pool, self._staging = DevicePool(cuda), Staging(cuda)
        # Stands for visual_embeds in a prompt without images; no row of it is used.
        dummy = (record.max_batch, 1, self._decoder.hidden_size)
        self._no_embeds = self._pool.take(dummy, bundle.manifest.dtype)
        cuda.clear(self._no_embeds.address, self._no_embeds.nbytes)
        self._caches: weakref.WeakSet[TensorRtCaches] = weakref.WeakSet()
        self._closed = False

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
            del self._session, self._no_embeds, self._staging
            self._pool.close()

    def _open(self) -> Session:
        if self._closed:
            raise BackendError("the TensorRT backend was closed; open the bundle again")
        self._cuda.activate()
        return self._session

    # Backend

    def new_caches(self, batch: int) -> TensorRtCaches:
        with self._lock:
            check_batch(self._open(), batch)
            lower, upper = self._engines["llm_lower"], self._engines["llm_upper"]
            caches = TensorRtCaches(
                PartCaches(self._cuda, lower.contract, batch, aliased=lower.aliased),
                PartCaches(self._cuda, upper.contract, batch, aliased=upper.aliased),
                batch,
            )
            self._caches.add(caches)
            return caches

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, DeviceTensor]:
        with self._lock:
            self._open()
            contract = self._engines["vision_encoder"].contract
            given = {spec.name: self._upload(inputs[spec.name], spec.dtype) for spec in contract.inputs}
            tokens = _sizes(contract, given).get("patches", 0) // self._patches_per_token
            return self._run("vision_encoder", given, {"tokens": tokens})

    def select(
        self, features: Mapping[str, DeviceTensor], token_order: NDArray[np.int64], quota: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], DeviceTensor]:
        with self._lock:
            self._open()
            own = {"token_order": token_order, "quota": quota}
            contract = self._engines["selector"].contract
            given = {
                spec.name: self._upload(own[spec.name], spec.dtype) if spec.name in own else features[spec.name]
                for spec in contract.inputs
            }
            outputs = self._run("selector", given, {"kept": min(quota.size, len(token_order))})
            count = int(quota.sum())  # what follows in the outputs was chosen beyond a crop's share
            return self._staging.download(outputs["kept_index"].first(count)), outputs["visual_embeds"].first(count)

    def lower(self, caches: TensorRtCaches, inputs: LowerInputs) -> LowerOutputs:
        with self._lock:
            self._open()
            batch, sequence = inputs.input_ids.shape
            _check_room(caches.lower, caches.batch, inputs.write_index, batch, sequence)
            own = {
                "input_ids": inputs.input_ids,
                "attention_mask": inputs.attention_mask,
                "stage2_slots": np.zeros(inputs.visual_keep, np.int64),
                "position_ids": inputs.position_ids,
                "write_index": inputs.write_index,
            }
            given = {name: self._upload(array, "int64") for name, array in own.items()}
            given["visual_embeds"] = embeds = self._visual_embeds(inputs.visual_embeds, batch)
            survivors = sequence - embeds.shape[1] + inputs.visual_keep
            return LowerOutputs(**self._run("llm_lower", given, {"survivors": survivors}, caches.lower))

    def _visual_embeds(self, images: Sequence[Sequence[DeviceTensor]], batch: int) -> DeviceTensor:
        """[batch, visual, hidden]: the images of each request one after another, without a copy where there is one image."""
        if not images:
            return self._no_embeds.first(batch)
        visual, hidden, dtype = sum(part.shape[0] for part in images[0]), self._decoder.hidden_size, self._no_embeds.dtype
        shape = (batch, visual, hidden)
        if batch == 1 and len(images[0]) == 1:
            only = images[0][0]
            return DeviceTensor(only.address, shape, dtype, only.owner)
        together = self._pool.take(shape, dtype)
        address = together.address
        for request in images:
            for part in request:
                self._cuda.on_device(address, part.address, part.nbytes)
                address += part.nbytes
        return together

    def upper(
        self,
        caches: TensorRtCaches,
        lower: LowerOutputs,
        position_ids: NDArray[np.int64] | None,
        write_index: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        with self._lock:
            self._open()
            batch, survivors, _ = lower.hidden_states.shape
            _check_room(caches.upper, caches.batch, write_index, batch, survivors)
            given = {
                "hidden_states": lower.hidden_states,
                "last_row": lower.last_row,
                "position_ids": lower.kept_position_ids if position_ids is None else self._upload(position_ids, "int64"),
                "write_index": self._upload(write_index, "int64"),
            }
            return self._staging.download(self._run("llm_upper", given, {}, caches.upper)["logits"])

    def decode(
        self,
        caches: TensorRtCaches,
        inputs: LowerInputs,
        position_ids: NDArray[np.int64] | None,
        write_index: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        with self._lock:
            self._open()
            batch = len(inputs.input_ids)
            _check_room(caches.lower, caches.batch, inputs.write_index, batch, 1)
            _check_room(caches.upper, caches.batch, write_index, batch, 1)
            key = (caches.lower.current, caches.upper.current, position_ids is not None)
            step = caches.steps.get(key)
            if step is None:
                step = caches.steps[key] = DecodeStep(
                    self._engines["llm_lower"],
                    self._engines["llm_upper"],
                    (caches.lower, caches.upper),
                    batch,
                    positions_given=position_ids is not None,
                )
            logits = step.run(decode_feeds(inputs, position_ids, write_index))
            caches.lower.written()
            caches.upper.written()
            return logits

    def fetch(self, tensor: DeviceTensor) -> NDArray[Any]:
        with self._lock:
            self._open()
            return self._staging.download(tensor)

    # One call of one engine

    def _upload(self, array: NDArray[Any], dtype: str) -> DeviceTensor:
        """An array on the device; pixel values come as float32 whatever the engines take."""
        tensor = self._pool.take(array.shape, dtype)
        self._staging.upload(array.astype(numpy_dtype(dtype), copy=False), tensor.address)
        return tensor

    def _run(
        self, name: str, given: dict[str, DeviceTensor], more: Mapping[str, int], caches: PartCaches | None = None
    ) -> dict[str, DeviceTensor]:
        """Enqueue an engine; its outputs but for the caches.

        Args:
            given: inputs but for the caches.
            more: sizes that follow from the inputs' but are not among them.
            caches: those of the decoder's halves.
        """
        contract, context = self._engines[name].contract, self._contexts[name]
        sizes = {**_sizes(contract, given), **more}
        bound = {} if caches is None else caches.bindings()
        outputs = {
            spec.name: self._pool.take(resolve(spec, sizes), spec.dtype) for spec in contract.outputs if spec.name not in bound
        }
        context.bind({**given, **bound, **outputs})
        context.enqueue()
        if caches is not None:
            caches.written()
        return outputs


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


def _sizes(contract: GraphContract, given: Mapping[str, DeviceTensor]) -> dict[str, int]:
    """Symbolic dimension -> its size in these inputs."""
    return {
        symbol: size
        for spec in contract.inputs
        if spec.name in given
        for symbol, size in zip(spec.shape, given[spec.name].shape, strict=True)
        if isinstance(symbol, str)
    }


def _check_room(caches: PartCaches, cached: int, write_index: NDArray[np.int64], batch: int, rows: int) -> None:
    """TensorRT ignores what is written beyond a cache's end."""
    if batch != cached or int(write_index.min()) < 0 or int(write_index.max()) + rows > caches.capacity:
        raise BackendError(
            f"{batch} x {rows} rows from {write_index.tolist()} do not fit into caches of {cached} x {caches.capacity} rows; "
            "export the bundle with larger capacities"
        )
