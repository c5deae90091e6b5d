"""The four graphs on ONNX Runtime's CPU execution provider, with KV caches updated in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.bundle import GRAPHS, Bundle
from sts_export.errors import BackendError
from sts_export.graphs.contracts import GraphContract
from sts_export.runtime.backend import LowerInputs, LowerOutputs, Tensor
from sts_export.runtime.onnxruntime_attention import with_cpu_attention

_NUMPY = {"float32": np.float32, "float16": np.float16}
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
        return sum(int(np.prod(buffer.shape())) * buffer.numpy().itemsize for buffer in self.buffers.values())


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


class OnnxRuntimeBackend:
    """See :class:`sts_export.runtime.backend.Backend`.

    Args:
        bundle: a float32 or float16 bundle.
        threads: intra-op threads; None leaves it to ONNX Runtime (one per physical core).

    Raises:
        BackendError: bfloat16, or a graph that ONNX Runtime refuses.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if bundle.manifest.dtype not in _NUMPY:
            raise BackendError(
                f"ONNX Runtime's CPU provider cannot run {bundle.manifest.dtype}; export again with --dtype float32"
            )
        self._dtype = _NUMPY[bundle.manifest.dtype]
        self._contracts = bundle.manifest.graphs
        self._sessions = {name: _session(bundle, name, threads) for name in GRAPHS}
        self._hidden_size = bundle.manifest.model.decoder.hidden_size

    def new_caches(self, batch: int) -> OrtCaches:
        try:
            return OrtCaches(self._bind_caches("llm_lower", batch), self._bind_caches("llm_upper", batch))
        except MemoryError:
            raise BackendError(f"no memory for the KV caches of {batch} request(s); use a smaller batch or capacity") from None

    def _bind_caches(self, name: str, batch: int) -> BoundCaches:
        contract: GraphContract = self._contracts[name]
        binding = self._sessions[name].io_binding()
        buffers = {}
        for before, after in contract.caches:
            # Zeros, not garbage: masked columns still enter a product, and NaN times zero is NaN.
            shape = (batch, *(int(dim) for dim in contract.input(before).shape[1:]))
            empty = np.zeros(shape, self._dtype)
            buffers[before] = ort.OrtValue.ortvalue_from_numpy(empty)
            binding.bind_ortvalue_input(before, buffers[before])
            binding.bind_ortvalue_output(after, buffers[before])
        return BoundCaches(binding, buffers)

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, Tensor]:
        contract = self._contracts["vision_encoder"]
        names = [spec.name for spec in contract.outputs]
        feeds = {spec.name: self._as(spec.dtype, inputs[spec.name]) for spec in contract.inputs}
        outputs = _guarded(self._sessions["vision_encoder"].run, names, feeds)
        return dict(zip(names, outputs, strict=True))

    def _as(self, dtype: str, array: NDArray[Any]) -> NDArray[Any]:
        """Pixel values come as float32 whatever the graphs take."""
        return array.astype(_NUMPY[dtype]) if dtype in _NUMPY else array

    def select(
        self, features: Mapping[str, Tensor], token_order: NDArray[np.int64], quota: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], Tensor]:
        own = {"token_order": token_order, "quota": quota}
        feeds = {spec.name: own.get(spec.name, features.get(spec.name)) for spec in self._contracts["selector"].inputs}
        kept, embeds = _guarded(self._sessions["selector"].run, ["kept_index", "visual_embeds"], feeds)
        count = int(quota.sum())  # what follows in the outputs was chosen beyond a crop's share
        return kept[:count], embeds[:count]

    def lower(self, caches: OrtCaches, inputs: LowerInputs) -> LowerOutputs:
        batch = len(inputs.input_ids)
        if inputs.visual_embeds:
            visual = np.stack([np.concatenate(list(images)) for images in inputs.visual_embeds])
        else:
            visual = np.zeros((batch, 1, self._hidden_size), self._dtype)
        feeds = {
            "input_ids": inputs.input_ids,
            "attention_mask": inputs.attention_mask,
            "visual_embeds": visual,
            "stage2_slots": np.zeros(inputs.visual_keep, np.int64),
            "position_ids": inputs.position_ids,
            "write_index": inputs.write_index,
        }
        return LowerOutputs(**self._run("llm_lower", caches.lower, feeds, _LOWER_OUTPUTS))

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
        logits: NDArray[np.float32] = self._run("llm_upper", caches.upper, feeds, ("logits",))["logits"].numpy()
        return logits

    def fetch(self, tensor: Tensor) -> NDArray[Any]:
        array: NDArray[Any] = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
        return array

    def _run(self, name: str, caches: BoundCaches, feeds: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Any]:
        binding = caches.binding
        for key, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(key, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(key, value)
        for key in outputs:
            binding.bind_output(key)
        _guarded(self._sessions[name].run_with_iobinding, binding)
        # The caches were bound first, so the outputs bound here are the last ones.
        return dict(zip(outputs, binding.get_outputs()[-len(outputs) :], strict=True))


def _session(bundle: Bundle, name: str, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said once, by the error
    if threads is not None:
        options.intra_op_num_threads = threads
    if bundle.manifest.quantization is None:
        # Float weights stay memory-mapped as they lie in the file.  Packing them for the matrix kernels costs seconds of
        # loading and a second copy in memory, and gains nothing measurable here; the integer kernels do need it.
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Four sessions share the cores: threads of one must not spin while another works.  In the short layers of a quantized
    # decoder waking them up costs a tenth of the time, so there they spin until the call ends.
    spin = bundle.manifest.quantization is not None and name.startswith("llm")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Linked weights lie outside the bundle, where a model loaded by path may not refer to.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.weights_folder.resolve())
    )
    graph = bundle.graph_file(name).read_bytes()
    model = bundle.manifest.model
    heads = model.vision.num_heads if name == "vision_encoder" else model.decoder.num_heads
    graph = _guarded(with_cpu_attention, graph, heads)
    return _guarded(ort.InferenceSession, graph, options, providers=["CPUExecutionProvider"])


def _guarded(call: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:  # onnxruntime raises its own classes, which share no base but Exception
        raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())[:300]}; export the bundle again") from error
