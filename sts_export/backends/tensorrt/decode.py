"""One decode step of both decoder engines: captured in a CUDA graph and replayed.

A graph holds the addresses of all that it touches and the state of the contexts it was captured from, so every step has buffers
and contexts of its own, which nothing else changes while it lives.
Source: "CUDA Graphs" in TensorRT's developer guide: run once after a change of shapes, then capture; one context per graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.cuda_runtime import CudaGraph
from sts_export.backends.tensorrt.caches import PartCaches
from sts_export.backends.tensorrt.engine import Engine
from sts_export.backends.tensorrt.memory import DeviceTensor, aligned, host_view, nbytes_of, resolve
from sts_export.errors import BackendError
from sts_export.graphs.contracts import TensorSpec
from sts_export.tensorrt.profiles import DECODE

_FED_LOWER = ("input_ids", "attention_mask", "position_ids", "write_index")
_FED_UPPER = ("position_ids", "write_index")
_CAPTURES = 3  # attempts: what another thread does may spoil one, and engines that cannot be captured never can
_PASSED_ON = {"hidden_states": "hidden_states", "last_row": "last_row", "position_ids": "kept_position_ids"}


class DecodeStep:
    """One token for every request of a batch.

    Args:
        lower, upper: the engines of the decoder's halves.
        caches: of either half; the step works on the buffers that hold them now.
        batch: requests.
        positions_given: the upper half's positions are fed; else they are those that the lower half passes on.

    Raises:
        BackendError: out of memory, or TensorRT refuses.
    """

    def __init__(
        self, lower: Engine, upper: Engine, caches: tuple[PartCaches, PartCaches], batch: int, *, positions_given: bool
    ) -> None:
        self._cuda = cuda = lower.session.cuda
        self._engines = (lower, upper)
        self._graph: CudaGraph | None = None
        self._runs = self._captures = 0
        self._contexts = [engine.take_context(DECODE, capturable=True) for engine in self._engines]
        sizes = {"batch": batch, **dict.fromkeys(("sequence", "visual", "visual_keep", "survivors"), 1)}
        fed = {f"lower.{name}": lower.contract.input(name) for name in _FED_LOWER}
        fed |= {f"upper.{name}": upper.contract.input(name) for name in _FED_UPPER if positions_given or name != "position_ids"}
        rest = {
            f"lower.{spec.name}": spec
            for spec in (*lower.contract.inputs, *lower.contract.outputs)
            if f"lower.{spec.name}" not in fed and not _is_cache(lower, spec.name)
        }
        rest["upper.logits"] = logits = next(spec for spec in upper.contract.outputs if spec.name == "logits")
        offsets, self._fed_bytes, total = _layout(fed, rest, sizes)
        self._device = cuda.allocate(total, f"a decode step of {batch} request(s)")
        # Rows of no image: of visual_embeds nothing is used, of stage2_slots only the length.
        cuda.clear(self._device.address, total)
        self._tensors = {
            name: DeviceTensor(self._device.address + offsets[name], resolve(spec, sizes), spec.dtype, self._device)
            for name, spec in (fed | rest).items()
        }
        self._logits = self._tensors["upper.logits"]
        self._pinned = cuda.allocate_pinned(self._fed_bytes + self._logits.nbytes)
        self._inputs = {
            name: host_view(self._pinned.address + offsets[name], self._tensors[name].shape, spec.dtype)
            for name, spec in fed.items()
        }
        self._result = host_view(self._pinned.address + self._fed_bytes, self._logits.shape, logits.dtype)
        self._bind(caches)

    def _bind(self, caches: tuple[PartCaches, PartCaches]) -> None:
        lower, upper = self._contexts
        passed = {ours: self._tensors[f"lower.{theirs}"] for ours, theirs in _PASSED_ON.items()}
        lower.bind({**self._of("lower."), **caches[0].bindings()})
        upper.bind({**passed, **self._of("upper."), **caches[1].bindings()})

    def _of(self, part: str) -> dict[str, DeviceTensor]:
        return {name.removeprefix(part): tensor for name, tensor in self._tensors.items() if name.startswith(part)}

    def run(self, feeds: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Logits [batch, vocab].

        Args:
            feeds: ``lower.input_ids`` and so on, by name.

        Raises:
            BackendError: TensorRT or CUDA fails.
        """
        for name, view in self._inputs.items():
            view[...] = feeds[name]
        if self._graph is None and self._runs and self._captures < _CAPTURES:
            # The first run has given TensorRT the chance to settle what depends on the shapes.
            self._captures += 1
            self._graph = self._capture()
        if self._graph is not None:
            self._cuda.launch(self._graph)
        else:
            self._enqueue()
        self._runs += 1
        self._cuda.synchronize()
        logits: NDArray[np.float32] = self._result.copy()
        return logits

    def _enqueue(self) -> None:
        """One copy in, both engines, one copy out."""
        self._cuda.to_device(self._device.address, self._pinned.address, self._fed_bytes)
        for context in self._contexts:
            context.enqueue()
        self._cuda.to_host(self._pinned.address + self._fed_bytes, self._logits.address, self._logits.nbytes)

    def _capture(self) -> CudaGraph | None:
        """None where something cannot be captured; the step is then enqueued."""
        if not all(context.can_be_captured for context in self._contexts):
            return None
        try:
            return self._cuda.capture(self._enqueue)
        except BackendError:
            self._engines[0].session.messages.take()  # they explain no later failure
            return None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def close(self) -> None:
        """Destroy the graph, free the buffers and leave the contexts to other steps."""
        if self._graph is not None:
            self._graph.free()
        self._graph = None
        self._device.free()
        self._pinned.free()
        for engine, context in zip(self._engines, self._contexts, strict=True):
            engine.give_context(context)
        self._contexts = []


def _is_cache(engine: Engine, name: str) -> bool:
    return any(name in pair for pair in engine.contract.caches)


def _layout(
    fed: Mapping[str, TensorSpec], rest: Mapping[str, TensorSpec], sizes: Mapping[str, int]
) -> tuple[dict[str, int], int, int]:
    """Where each tensor begins in one block, fed ones first; the bytes of those, and of all."""
    offsets: dict[str, int] = {}
    end = fed_end = 0
    for group in (fed, rest):
        for name, spec in group.items():
            offsets[name] = end
            end += aligned(nbytes_of(resolve(spec, sizes), spec.dtype))
        fed_end = fed_end or end
    return offsets, fed_end, end


def decode_feeds(inputs: Any, position_ids: NDArray[np.int64] | None, write_index: NDArray[np.int64]) -> dict[str, Any]:
    """What :meth:`DecodeStep.run` is fed, from the arguments of Backend.decode."""
    feeds = {f"lower.{name}": getattr(inputs, name) for name in _FED_LOWER}
    feeds["upper.write_index"] = write_index
    if position_ids is not None:
        feeds["upper.position_ids"] = position_ids
    return feeds
