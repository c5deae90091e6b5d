"""One decode step of all decoder parts: captured in a CUDA graph and replayed.

A graph holds the addresses of all that it touches and the state of the contexts it was captured from, so every step has buffers
and contexts of its own, which nothing else changes while it lives.
Source: "CUDA Graphs" in TensorRT's developer guide: run once after a change of shapes, then capture; one context per graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.cuda_runtime import CudaGraph
from sts_export.backends.tensorrt.engine import Engine
from sts_export.backends.tensorrt.memory import DeviceTensor, aligned, host_view, nbytes_of, resolve
from sts_export.backends.tensorrt.part_caches import PartCaches
from sts_export.errors import BackendError
from sts_export.graphs.contracts import TensorSpec
from sts_export.requests.feeds import passed_on
from sts_export.tensorrt.profiles import DECODE

_CAPTURES = 3  # attempts: what another thread does may spoil one, and engines that cannot be captured never can
LOGITS = "logits"  # of the last part
Names = tuple[str, str]  # of a part, and of one of its inputs or outputs
Feeds = Mapping[str, Mapping[str, NDArray[Any]]]  # part -> input -> array
# Which buffers each part reads, how many slots are run, and what is fed.
StepKey = tuple[tuple[int, ...], int, frozenset[Names]]


def step_key(caches: Iterable[PartCaches], slots: int, feeds: Feeds) -> StepKey:
    """What a step has to be made for anew: addresses, shapes and inputs."""
    current = tuple(part.current for part in caches)
    return current, slots, frozenset((part, name) for part, given in feeds.items() for name in given)


class DecodeStep:
    """One token for each of the first slots.

    Args:
        engines: of the decoder's parts, in the order in which they run.
        caches: of each part; the step works on the buffers that hold them now.
        slots: how many.
        fed: what comes from the host.  The rest comes from the part before; visual rows are one row of zeros.

    Raises:
        BackendError: out of memory, or TensorRT refuses.
    """

    def __init__(self, engines: Sequence[Engine], caches: Sequence[PartCaches], slots: int, fed: Collection[Names]) -> None:
        self._cuda = cuda = engines[0].session.cuda
        self._engines = engines
        self._graph: CudaGraph | None = None
        self._runs = self._captures = 0
        self._contexts = [engine.take_context(DECODE, capturable=True) for engine in engines]
        sizes = {"batch": slots, **{symbol: 1 for engine in engines for symbol in _symbols(engine) if symbol != "batch"}}
        from_host: dict[Names, TensorSpec] = {}
        own: dict[Names, TensorSpec] = {}
        passed: dict[Names, Names] = {}
        outputs: dict[str, Names] = {}  # of the part before
        for engine in engines:
            part, taken = engine.contract.name, passed_on(engine.contract, outputs)
            for spec in engine.contract.own_inputs:
                if (part, spec.name) in fed:
                    from_host[part, spec.name] = spec
                elif spec.name in taken:
                    passed[part, spec.name] = taken[spec.name]
                elif spec.may_be_absent:
                    own[part, spec.name] = spec
                else:
                    raise BackendError(f"{part} takes {spec.name}, which is neither fed nor an output of the part before")
            outputs = {spec.name: (part, spec.name) for spec in engine.contract.own_outputs}
            own |= {(part, spec.name): spec for spec in engine.contract.own_outputs}
        offsets, self._fed_bytes, total = _layout(from_host, own, sizes)
        self._device = cuda.allocate(total, f"a decode step of {slots} request(s)")
        cuda.clear(self._device.address, total)  # what stands for visual rows must be finite
        self._tensors = {
            names: DeviceTensor(self._device.address + offsets[names], resolve(spec, sizes), spec.dtype, self._device)
            for names, spec in (from_host | own).items()
        }
        self._tensors |= {names: self._tensors[source] for names, source in passed.items()}
        self._logits = self._tensors[engines[-1].contract.name, LOGITS]
        self._pinned = cuda.allocate_pinned(self._fed_bytes + self._logits.nbytes)
        self._inputs = {
            names: host_view(self._pinned.address + offsets[names], self._tensors[names].shape, spec.dtype)
            for names, spec in from_host.items()
        }
        self._result = host_view(self._pinned.address + self._fed_bytes, self._logits.shape, self._logits.dtype)
        for engine, context, cached in zip(engines, self._contexts, caches, strict=True):
            tensors = {name: tensor for (part, name), tensor in self._tensors.items() if part == engine.contract.name}
            context.bind(tensors | cached.step_bindings(slots))

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Logits [slots, vocab].

        Args:
            feeds: the arrays whose names the step was made for.

        Raises:
            BackendError: TensorRT or CUDA fails, or an array has another shape.
        """
        for (part, name), view in self._inputs.items():
            array = feeds[part][name]
            if array.shape != view.shape:
                raise BackendError(
                    f"{name} of {part} has the shape {list(array.shape)}, a decode step takes {list(view.shape)}"
                )
            view[...] = array
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
        """One copy in, all engines, one copy out."""
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


def _symbols(engine: Engine) -> set[str]:
    specs = (*engine.contract.inputs, *engine.contract.outputs)
    return {size for spec in specs for size in spec.shape if isinstance(size, str)}


def _layout(
    fed: Mapping[Names, TensorSpec], rest: Mapping[Names, TensorSpec], sizes: Mapping[str, int]
) -> tuple[dict[Names, int], int, int]:
    """Where each tensor begins in one block, fed ones first; the bytes of those, and of all."""
    offsets: dict[Names, int] = {}
    end = fed_end = 0
    for group in (fed, rest):
        for names, spec in group.items():
            offsets[names] = end
            end += aligned(nbytes_of(resolve(spec, sizes), spec.dtype))
        fed_end = fed_end or end
    return offsets, fed_end, end
