"""The four graphs on ONNX Runtime, on the CPU or on a CUDA GPU, with KV caches updated in place.

Inputs are bound from host memory and copied to where they are wanted; features, embeddings, hidden states and kept rows stay
on the device, and only kept tokens and logits come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.backends.onnxruntime.memory import ONNX_TYPES, Memory, Rows
from sts_export.backends.onnxruntime.sessions import Sessions, guarded
from sts_export.backends.protocol import LowerInputs, LowerOutputs, Tensor
from sts_export.bundle.manifest import Bundle
from sts_export.errors import BackendError
from sts_export.graphs.contracts import GraphContract
from sts_export.lowering.onnxruntime_attention import Device, with_fused_attention

_LOWER_OUTPUTS = ("hidden_states", "kept_rows", "kept_position_ids", "last_row")


@dataclass(frozen=True)
class BoundCaches:
    """The buffers of one graph and a binding that uses each of them as input and as output.

    ONNX Runtime writes a cache in place only if one OrtValue is bound on both sides; otherwise it copies all of it.
    """

    binding: Any
    buffers: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(int(buffer.tensor_size_in_bytes()) for buffer in self.buffers.values())


@dataclass(frozen=True)
class OrtCaches:
    """Key-value buffers of a batch."""

    lower: BoundCaches
    upper: BoundCaches

    @property
    def lower_bytes(self) -> int:
        return self.lower.nbytes

    @property
    def upper_bytes(self) -> int:
        return self.upper.nbytes

    @property
    def freed(self) -> bool:
        return False  # ONNX Runtime's values live as long as they are held


class OnnxRuntimeBackend:
    """See :class:`sts_export.backends.protocol.Backend`.

    Args:
        bundle: a bundle; on the CPU one of float32 or float16, on a GPU one that is not quantized.
        threads: intra-op threads on the CPU; None leaves it to ONNX Runtime (one per physical core).
        device: where it runs.

    Raises:
        BackendError: the device cannot run the bundle, cannot be used at all, or ONNX Runtime refuses a graph.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device = "cpu") -> None:
        manifest = bundle.manifest
        if device == "cpu" and manifest.dtype == "bfloat16":
            raise BackendError(
                "ONNX Runtime's CPU provider cannot run bfloat16; export again with --dtype float32, or use a GPU"
            )
        if device == "cuda" and manifest.quantization is not None:
            raise BackendError(
                f"{manifest.quantization} bundles run on the CPU; use --backend onnxruntime, or export without --quantize"
            )
        sessions = Sessions(device, threads)
        self._device = device
        self._contracts = manifest.graphs
        self._sessions = {name: _open(sessions, bundle, name) for name in bundle.manifest.graphs}
        self._memory = Memory(sessions, manifest.dtype)
        self._hidden_size = manifest.model.decoder.hidden_size
        self._no_visual: dict[int, Any] = {}  # batch -> the dummy row of requests without visual rows

    def new_caches(self, batch: int) -> OrtCaches:
        return OrtCaches(self._bind_caches("llm_lower", batch), self._bind_caches("llm_upper", batch))

    def _bind_caches(self, name: str, batch: int) -> BoundCaches:
        contract: GraphContract = self._contracts[name]
        binding = self._session(name).io_binding()
        buffers = {}
        for before, after in contract.caches:
            # Zeros, not garbage: masked columns still enter a product, and NaN times zero is NaN.
            buffers[before] = self._memory.zeros((batch, *(int(dim) for dim in contract.input(before).shape[1:])))
            binding.bind_ortvalue_input(before, buffers[before])
            binding.bind_ortvalue_output(after, buffers[before])
        return BoundCaches(binding, buffers)

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, Tensor]:
        contract, session = self._contracts["vision_encoder"], self._session("vision_encoder")
        # Pixel values come as float32 whatever the graphs take.
        feeds = {
            spec.name: self._memory.from_numpy(inputs[spec.name]) if spec.dtype in ONNX_TYPES else inputs[spec.name]
            for spec in contract.inputs
        }
        outputs = {spec.name: self._device for spec in contract.outputs}
        return self._run(session, session.io_binding(), feeds, outputs)

    def select(
        self, features: Mapping[str, Tensor], token_order: NDArray[np.int64], quota: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], Tensor]:
        session = self._session("selector")
        given = {"token_order": token_order, "quota": quota, **features}
        feeds = {spec.name: given[spec.name] for spec in self._contracts["selector"].inputs}
        outputs: dict[str, Device] = {"kept_index": "cpu", "visual_embeds": self._device}
        found = self._run(session, session.io_binding(), feeds, outputs)
        count = int(quota.sum())  # what follows in the outputs was chosen beyond a crop's share
        kept: NDArray[np.int64] = found["kept_index"].numpy()
        return kept[:count], Rows(found["visual_embeds"], count)

    def lower(self, caches: OrtCaches, inputs: LowerInputs) -> LowerOutputs:
        feeds = {
            "input_ids": inputs.input_ids,
            "attention_mask": inputs.attention_mask,
            "visual_embeds": self._visual_embeds(inputs),
            "stage2_slots": np.zeros(inputs.visual_keep, np.int64),
            "position_ids": inputs.position_ids,
            "write_index": inputs.write_index,
        }
        outputs = dict.fromkeys(_LOWER_OUTPUTS, self._device)
        return LowerOutputs(**self._run(self._session("llm_lower"), caches.lower.binding, feeds, outputs))

    def _visual_embeds(self, inputs: LowerInputs) -> Any:
        if inputs.visual_embeds:
            return self._memory.joined(inputs.visual_embeds)
        batch = len(inputs.input_ids)
        if batch not in self._no_visual:
            self._no_visual[batch] = self._memory.zeros((batch, 1, self._hidden_size))
        return self._no_visual[batch]

    def upper(
        self,
        caches: OrtCaches,
        lower: LowerOutputs,
        position_ids: NDArray[np.int64] | None,
        write_index: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        feeds = {
            "hidden_states": lower.hidden_states,
            "last_row": lower.last_row,
            "position_ids": lower.kept_position_ids if position_ids is None else position_ids,
            "write_index": write_index,
        }
        outputs = self._run(self._session("llm_upper"), caches.upper.binding, feeds, {"logits": "cpu"})
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        return logits

    def decode(
        self,
        caches: OrtCaches,
        inputs: LowerInputs,
        position_ids: NDArray[np.int64] | None,
        write_index: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        return self.upper(caches, self.lower(caches, inputs), position_ids, write_index)

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

    def _run(self, session: Any, binding: Any, feeds: Mapping[str, Any], outputs: Mapping[str, Device]) -> dict[str, Any]:
        """Run one graph; outputs by name, each on the device asked for."""
        for key, value in feeds.items():
            self._guarded(self._memory.bind, binding, key, value)
        for key, device in outputs.items():
            binding.bind_output(key, device, 0)
        self._guarded(session.run_with_iobinding, binding)
        # Caches were bound first, so the outputs bound here are the last ones.
        return dict(zip(outputs, binding.get_outputs()[-len(outputs) :], strict=True))

    def _guarded(self, call: Any, *args: Any) -> Any:
        return guarded(self._device, call, *args)


def _open(sessions: Sessions, bundle: Bundle, name: str) -> ort.InferenceSession:
    model, quantized = bundle.manifest.model, bundle.manifest.quantization is not None
    heads = model.vision.num_heads if name == "vision_encoder" else model.decoder.num_heads
    graph = bundle.graph_file(name).read_bytes()
    return sessions.open(
        guarded(sessions.device, with_fused_attention, graph, heads, sessions.device),
        weights=bundle.weights_folder,
        # Float weights stay memory-mapped as they lie in the file.  Packing them for the matrix kernels costs seconds of
        # loading and a second copy in memory, and gains nothing measurable here; the integer kernels do need it.
        prepack=quantized,
        # Four sessions share the cores: threads of one must not spin while another works.  In the short layers of a
        # quantized decoder waking them up costs a tenth of the time, so there they spin until the call ends.
        spin=quantized and name.startswith("llm"),
    )
