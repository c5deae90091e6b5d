"""The graphs of a bundle on ONNX Runtime, on the CPU or on a CUDA GPU, with KV caches updated in place.

Inputs are bound from host memory and copied to where they are wanted; features, embeddings, hidden states and kept rows stay
on the device, and only what is fetched comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.backends.onnxruntime.caches import OrtCaches, PartCaches
from sts_export.backends.onnxruntime.memory import Memory, TensorView, first_rows
from sts_export.backends.onnxruntime.sessions import SDPA_KERNEL, SessionFactory, guarded
from sts_export.backends.protocol import Feeds, Tensor
from sts_export.bundle.manifest import Bundle
from sts_export.dtypes import DTYPES
from sts_export.errors import BackendError
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.lowering.onnxruntime_attention import Device
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from sts_export.requests.feeds import passed_on

VISION_ENCODER = "vision_encoder"


class OnnxRuntimeBackend:
    """See :class:`sts_export.backends.protocol.Backend`.

    Args:
        bundle: a bundle; on the CPU one of float32 or float16, on a GPU one that is not quantized.
        threads: intra-op threads on the CPU; None leaves it to ONNX Runtime (one per physical core).
        device: where it runs.
        operators: library of custom operators, for a GPU; None runs the functions that the graphs bring.
        sdpa_kernel: attention kernels that may run on a GPU (sessions.py).

    Raises:
        BackendError: the device cannot run the bundle, cannot be used at all, or ONNX Runtime refuses a graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        device: Device = "cpu",
        operators: Path | None = None,
        sdpa_kernel: str = SDPA_KERNEL,
    ) -> None:
        manifest = bundle.manifest
        if device == "cpu" and manifest.dtype == "bfloat16":
            raise BackendError(
                "ONNX Runtime's CPU provider cannot run bfloat16; export again with --dtype float32, or use a GPU"
            )
        if device == "cuda" and manifest.quantization is not None:
            raise BackendError(
                f"{manifest.quantization} bundles run on the CPU; use --backend onnxruntime, or export without --quantize"
            )
        sessions = SessionFactory(device, threads, operators, sdpa_kernel)
        self._device = device
        self._least_slots = least_slots(device, manifest.dtype)
        self._contracts = manifest.graphs
        self._without_caches = {name: _without_caches(name, contract) for name, contract in manifest.graphs.items()}
        self._sessions = {name: _open(sessions, bundle, name) for name in manifest.graphs}
        self._memory = Memory(sessions, manifest.dtype)
        self._parts = [part.name for part in manifest.pruning.parts]
        self._no_visual: dict[tuple[int, ...], Any] = {}  # shape -> the dummy row of requests without visual rows

    def new_caches(self, slots: int) -> OrtCaches:
        parts = {name: PartCaches.allocate(self._contracts[name], self._memory, slots) for name in self._parts}
        return OrtCaches(parts, slots)

    def run(
        self,
        graph: str,
        inputs: Feeds,
        *,
        caches: OrtCaches | None = None,
        slot: int | None = None,
        fetch: Collection[str] = (),
    ) -> Mapping[str, Any]:
        session = self._session(graph)
        if caches is None:
            return self._run(graph, session, session.io_binding(), inputs, fetch)
        assert slot is not None, "caches are worked on by slot"
        return self._run(graph, session, caches.parts[graph].binding(session, slot, 1), inputs, fetch)

    def decode(self, caches: OrtCaches, inputs: Mapping[str, Feeds]) -> NDArray[np.float32]:
        outputs: Mapping[str, Any] = {}
        for part in self._parts:
            session, contract = self._session(part), self._without_caches[part]
            binding = caches.parts[part].binding(session, 0, _batch(contract, inputs[part]))
            feeds = {**passed_on(contract, outputs), **inputs[part]}
            outputs = self._run(part, session, binding, feeds, ("logits",))
        logits: NDArray[np.float32] = outputs["logits"]
        return logits

    def step_slots(self, needed: int, slots: int) -> int:
        return max(needed, min(self._least_slots, slots))

    def rows(self, tensor: Tensor, count: int) -> TensorView:
        return first_rows(tensor, count)

    def joined(self, tensors: Sequence[Tensor]) -> TensorView:
        return self._memory.joined(tensors)

    def close(self) -> None:
        self._sessions.clear()

    def fetch(self, tensor: Tensor) -> NDArray[Any]:
        return self._memory.fetch(tensor)

    def _session(self, name: str) -> Any:
        """To be held while a binding of it is used: a binding does not keep it, and another thread may close the backend."""
        session = self._sessions.get(name)
        if session is None:
            raise BackendError("the ONNX Runtime backend was closed; open the bundle again")
        return session

    def _run(self, name: str, session: Any, binding: Any, inputs: Feeds, fetch: Collection[str]) -> dict[str, Any]:
        """Run one graph; outputs by name but for the caches, on the device or as arrays."""
        contract = self._without_caches[name]
        for spec in contract.inputs:
            self._guarded(self._memory.bind, binding, spec.name, self._input(contract, spec, inputs))
        for spec in contract.outputs:
            # numpy has no bfloat16, which is therefore fetched from the device.
            direct = spec.name in fetch and spec.dtype != "bfloat16"
            binding.bind_output(spec.name, "cpu" if direct else self._device, 0)
        self._guarded(session.run_with_iobinding, binding)
        # Caches were bound first, so the outputs bound here are the last ones.
        values = binding.get_outputs()[-len(contract.outputs) :]
        return {
            spec.name: self._memory.fetch(value) if spec.name in fetch else value
            for spec, value in zip(contract.outputs, values, strict=True)
        }

    def _input(self, contract: GraphContract, spec: TensorSpec, inputs: Feeds) -> Any:
        value = inputs.get(spec.name)
        if value is None and spec.may_be_absent:
            return self._dummy(spec, {"batch": _batch(contract, inputs), "visual": 1})
        if isinstance(inputs[spec.name], np.ndarray) and spec.dtype in DTYPES:
            return self._memory.from_numpy(inputs[spec.name], spec.dtype)
        return value

    def _dummy(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
        """One row that no prompt row takes, of zeros."""
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        if shape not in self._no_visual:
            self._no_visual[shape] = self._memory.zeros(shape)
        return self._no_visual[shape]

    def _guarded(self, call: Any, *args: Any) -> Any:
        return guarded(self._device, call, *args)


def least_slots(device: Device, dtype: str) -> int:
    """Slots that a step has to run, idle ones among them, for answers that do not depend on how many run together.

    On the CPU a product with one row adds up in another order than one with more, which all agree to the last bit.  In float16
    the difference is rounded up to one that chooses other tokens.  (In float32 it is some 1e-5 of a log-probability, and the
    second row is not worth its time.)
    """
    return 2 if device == "cpu" and dtype == "float16" else 1


def _batch(contract: GraphContract, feeds: Feeds) -> int:
    """How many requests the inputs from the host are of."""
    arrays = (feeds.get(spec.name) for spec in contract.inputs if spec.shape[0] == "batch")
    return next(len(array) for array in arrays if isinstance(array, np.ndarray))


def _without_caches(name: str, contract: GraphContract) -> GraphContract:
    """Only what is bound anew for every call, as the session takes it."""
    inputs = tuple(replace(spec, dtype="float32") if _cast_inside(name, spec) else spec for spec in contract.own_inputs)
    return replace(contract, inputs=inputs, outputs=contract.own_outputs, caches=())


def _cast_inside(name: str, spec: TensorSpec) -> bool:
    """Processors make float32 pixels.  The device casts them: numpy takes milliseconds for a picture in float16."""
    return name == VISION_ENCODER and spec.dtype in ("float16", "bfloat16")


def _open(sessions: SessionFactory, bundle: Bundle, name: str) -> ort.InferenceSession:
    model, quantized = bundle.manifest.model, bundle.manifest.quantization is not None
    heads = model.vision.num_heads if name == VISION_ENCODER else model.decoder.num_heads
    graph = bundle.graph_file(name).read_bytes()
    from_host = [spec.name for spec in bundle.manifest.graphs[name].inputs if _cast_inside(name, spec)]
    return sessions.open(
        guarded(
            sessions.device,
            for_onnxruntime,
            graph,
            heads,
            sessions.device,
            from_host,
            operators=sessions.operators is not None,
        ),
        weights=bundle.weights_folder,
        # Float weights stay memory-mapped as they lie in the file.  Packing them for the matrix kernels costs seconds of
        # loading and a second copy in memory, and gains nothing measurable here; the integer kernels do need it.
        prepack=quantized,
        # Four sessions share the cores: threads of one must not spin while another works.  In the short layers of a
        # quantized decoder waking them up costs a tenth of the time, so there they spin until the call ends.
        spin=quantized and name.startswith("llm"),
    )
