"""The four graphs on ONNX Runtime's CPU execution provider, with KV caches updated in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.bundle import GRAPHS, Bundle
from sts_export.errors import BackendError
from sts_export.graphs.contracts import GraphContract
from sts_export.runtime.backend import LowerInputs, LowerOutputs, Tensor

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
    """Key-value buffers of one request."""

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
        hidden = bundle.manifest.model.decoder.hidden_size
        self._no_visual = np.zeros((1, 1, hidden), self._dtype)

    def new_caches(self) -> OrtCaches:
        return OrtCaches(self._bind_caches("llm_lower"), self._bind_caches("llm_upper"))

    def _bind_caches(self, name: str) -> BoundCaches:
        contract: GraphContract = self._contracts[name]
        binding = self._sessions[name].io_binding()
        buffers = {}
        for before, after in contract.caches:
            # Zeros, not garbage: masked columns still enter a product, and NaN times zero is NaN.
            shape = (1, *(int(dim) for dim in contract.input(before).shape[1:]))
            empty = np.zeros(shape, self._dtype)
            buffers[before] = ort.OrtValue.ortvalue_from_numpy(empty)
            binding.bind_ortvalue_input(before, buffers[before])
            binding.bind_ortvalue_output(after, buffers[before])
        return BoundCaches(binding, buffers)

    def encode(self, pixel_values: NDArray[np.float32]) -> Tensor:
        names = [spec.name for spec in self._contracts["vision_encoder"].outputs]
        outputs = _guarded(self._sessions["vision_encoder"].run, names, {"pixel_values": pixel_values.astype(self._dtype)})
        return dict(zip(names, outputs, strict=True))

    def select(self, features: Tensor) -> tuple[NDArray[np.int64], Tensor]:
        feeds = {spec.name: features[spec.name] for spec in self._contracts["selector"].inputs}
        kept, embeds = _guarded(self._sessions["selector"].run, ["kept_index", "visual_embeds"], feeds)
        return kept, embeds

    def lower(self, caches: OrtCaches, inputs: LowerInputs) -> LowerOutputs:
        visual = self._no_visual if inputs.visual_embeds is None else inputs.visual_embeds
        feeds = {
            "input_ids": inputs.input_ids,
            "attention_mask": np.ones_like(inputs.input_ids),
            "visual_embeds": visual.reshape(1, -1, visual.shape[-1]),
            "position_ids": inputs.position_ids,
            "write_index": np.array([inputs.write_index], np.int64),
        }
        results = self._run("llm_lower", caches.lower, feeds, _LOWER_OUTPUTS)
        return LowerOutputs(
            hidden_states=results["hidden_states"],
            last_row=results["last_row"],
            kept_rows=results["kept_rows"].numpy(),
            kept_position_ids=results["kept_position_ids"].numpy(),
        )

    def upper(
        self, caches: OrtCaches, lower: LowerOutputs, position_ids: NDArray[np.int64], write_index: int
    ) -> NDArray[np.float32]:
        feeds = {
            "hidden_states": lower.hidden_states,
            "last_row": lower.last_row,
            "position_ids": position_ids,
            "write_index": np.array([write_index], np.int64),
        }
        logits: NDArray[np.float32] = self._run("llm_upper", caches.upper, feeds, ("logits",))["logits"].numpy()[0]
        return logits

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
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # Weights stay memory-mapped as they lie in the file.  Packing them for the matrix kernels costs seconds of loading
    # and a second copy in memory, and gains nothing measurable here.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Four sessions share the cores: threads of one must not spin while another works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Linked weights lie outside the bundle, where a model loaded by path may not refer to.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.weights_folder.resolve())
    )
    graph = bundle.graph_file(name).read_bytes()
    return _guarded(ort.InferenceSession, graph, options, providers=["CPUExecutionProvider"])


def _guarded(call: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:  # onnxruntime raises its own classes, which share no base but Exception
        raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())[:300]}; export the bundle again") from error
