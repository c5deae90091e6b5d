"""One engine and its execution contexts: tensors by name, checked against the graph's contract and the engine's profiles."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from sts_export.backends.cuda_runtime import Cuda, DeviceMemory
from sts_export.backends.tensorrt.api import (
    KernelCache,
    Messages,
    aliased_input,
    can_be_captured,
    create_context,
    logger_of,
    tells_aliases,
)
from sts_export.backends.tensorrt.memory import DeviceTensor
from sts_export.dtypes import ELEMENT_TYPES
from sts_export.errors import BackendError
from sts_export.graphs.contracts import GraphContract


@dataclass
class Session:
    """What the engines of one backend share.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: the stream that everything runs on.
        rebuild: command that builds the engines again.
        max_batch: that the engines were built for.
        kernels: compiled for them at run time.
        activations: memory that contexts use in turn, set once all engines are there.
    """

    trt: ModuleType
    cuda: Cuda
    rebuild: str
    max_batch: int
    kernels: KernelCache
    messages: Messages = field(init=False)
    runtime: Any = field(init=False)
    activations: DeviceMemory | None = None

    def __post_init__(self) -> None:
        logger, self.messages = logger_of(self.trt)
        self.messages.take()
        self.runtime = self.trt.Runtime(logger)

    def failure(self, what: str, advice: str = "") -> BackendError:
        """An error with what TensorRT has logged."""
        said = self.messages.take()
        if "out of memory" in said.lower() or "outofmemory" in said.lower():
            free, total = self.cuda.memory()
            memory = f"{free / 1e6:.0f} MB of {total / 1e6:.0f} MB GPU memory are free"
            advice = f"{memory}; use a smaller batch, or end what else uses the GPU"
        return BackendError(f"{what}: {said}; {advice or f'build the engines again: {self.rebuild}'}")


class Engine:
    """An engine of the bundle.

    Args:
        session: shared with the other engines.
        file: as ``sts-export build`` wrote it.
        contract: of its graph.
        aliased: the record's word on whether cache outputs are bound to the address of their inputs.

    Raises:
        BackendError: TensorRT does not load it, or it is not an engine of this graph.
    """

    def __init__(self, session: Session, file: Path, contract: GraphContract, *, aliased: bool) -> None:
        self.session, self.contract, self.aliased = session, contract, aliased
        self._engine = _deserialize(session, file)
        self._free: dict[tuple[int, bool], list[Context]] = {}
        self._check(file)
        self.activation_bytes = int(self._engine.device_memory_size_v2)  # enough for every profile

    def _check(self, file: Path) -> None:
        trt, engine = self.session.trt, self._engine
        wanted = {spec.name: (spec, "INPUT") for spec in self.contract.inputs}
        wanted |= {spec.name: (spec, "OUTPUT") for spec in self.contract.outputs}
        found = {str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)}
        wrong = sorted(found.symmetric_difference(wanted))
        for name in sorted(found & set(wanted)):
            spec, mode = wanted[name]
            shape = tuple(engine.get_tensor_shape(name))
            if (
                engine.get_tensor_mode(name) != getattr(trt.TensorIOMode, mode)
                or engine.get_tensor_dtype(name) != getattr(trt.DataType, str(ELEMENT_TYPES[spec.dtype].tensorrt))
                or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE
                or len(shape) != len(spec.shape)
                or any(isinstance(ours, int) and size not in (-1, ours) for ours, size in zip(spec.shape, shape, strict=True))
            ):
                wrong.append(name)
        for before, after in self.contract.caches:
            if tells_aliases(engine) and aliased_input(engine, after) != (before if self.aliased else None):
                wrong.append(after)
        if wrong:
            raise BackendError(
                f"{file.name} is not an engine of this bundle's {self.contract.name} "
                f"(it differs in {', '.join(wrong[:4])}); build it again: {self.session.rebuild}"
            )

    def take_context(self, profile: int, *, capturable: bool = False) -> Context:
        """A context of a profile; TensorRT takes a while to make one, so they are kept for others.

        Raises:
            BackendError: TensorRT cannot make one.
        """
        free = self._free.get((profile, capturable))
        return free.pop() if free else Context(self, self._engine, profile, capturable=capturable)

    def give_context(self, context: Context) -> None:
        self._free.setdefault((context.profile, context.capturable), []).append(context)

    def limits(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Least and largest shape of an input."""
        least, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(largest)


class Context:
    """An execution context: bound shapes and addresses, on the backend's stream.

    Args:
        engine, raw: the engine, and TensorRT's own.
        profile: its optimization profile.
        capturable: it will be captured in a CUDA graph.
    """

    def __init__(self, engine: Engine, raw: Any, profile: int, *, capturable: bool) -> None:
        session = engine.session
        self.profile, self.capturable = profile, capturable
        self._session, self._contract = session, engine.contract
        self._context = create_context(session.trt, raw, capturable=capturable, kernels=session.kernels)
        if self._context is None:
            raise session.failure(f"TensorRT cannot make an execution context of {engine.contract.name}")
        memory = session.activations
        if engine.activation_bytes:
            assert memory is not None and memory.nbytes >= engine.activation_bytes
            self._context.set_device_memory(memory.address, memory.nbytes)
        try:
            chosen = self._context.set_optimization_profile_async(profile, session.cuda.stream_handle)
        except RuntimeError:
            chosen = False
        if not chosen:
            raise session.failure(f"TensorRT refuses profile {profile} of {engine.contract.name}")
        self._limits = {
            spec.name: engine.limits(spec.name, profile)
            for spec in engine.contract.inputs
            if any(isinstance(size, str) for size in spec.shape)
        }
        self._inputs = {spec.name for spec in engine.contract.inputs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def bind(self, tensors: Mapping[str, DeviceTensor]) -> None:
        """Tell TensorRT where inputs and outputs lie, and the inputs' shapes; what it knows already is left as it is.

        Raises:
            BackendError: a shape outside the profile.
        """
        changed = False
        for name, tensor in tensors.items():
            if name in self._inputs and self._shapes.get(name) != tensor.shape:
                self._set_shape(name, tensor.shape)
                changed = True
            if self._addresses.get(name) != tensor.address:
                if not self._context.set_tensor_address(name, tensor.address):
                    raise self._session.failure(f"TensorRT refuses the address of {name}")
                self._addresses[name] = tensor.address
        if changed:
            self._check_outputs(tensors)

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes.pop(name, None)
        if name in self._limits:
            least, largest = self._limits[name]
            for size, low, high, symbol in zip(shape, least, largest, self._contract.input(name).shape, strict=True):
                if symbol == "batch" and size > high:
                    raise _batch_too_large(self._session, size)
                if not low <= size <= high:
                    raise BackendError(
                        f"{name} of {self._contract.name} has {size} {symbol}, the engine takes {low} to {high}; "
                        f"build it again: {self._session.rebuild}"
                    )
        if not self._context.set_input_shape(name, shape):
            raise self._session.failure(f"TensorRT refuses the shape {list(shape)} of {name}")
        self._shapes[name] = shape

    def _check_outputs(self, tensors: Mapping[str, DeviceTensor]) -> None:
        """TensorRT writes as much as it thinks the outputs have: it must agree about their sizes."""
        for spec in self._contract.outputs:
            theirs = tuple(self._context.get_tensor_shape(spec.name))
            ours = tensors[spec.name].shape
            if len(theirs) != len(ours) or any(size not in (-1, own) for size, own in zip(theirs, ours, strict=True)):
                self._shapes.clear()
                raise BackendError(
                    f"the engine of {self._contract.name} makes {spec.name} of shape {list(theirs)}, not {list(ours)}; "
                    f"build it again: {self._session.rebuild}"
                )

    def enqueue(self) -> None:
        """Put the engine's work on the stream.

        Raises:
            BackendError: TensorRT refuses or fails.
        """
        if not self._context.execute_async_v3(self._session.cuda.stream_handle):
            raise self._session.failure(f"TensorRT failed in {self._contract.name}")

    @property
    def can_be_captured(self) -> bool:
        return can_be_captured(self._context, self._session.cuda.stream_handle)


def _batch_too_large(session: Session, batch: int) -> BackendError:
    return BackendError(
        f"{batch} requests together, the engines take {session.max_batch}; use a smaller batch, "
        f"or build them again: {session.rebuild} --max-batch {batch}"
    )


def check_batch(session: Session, batch: int) -> None:
    """Refuse what the engines were not built for, before memory is taken for it.

    Raises:
        BackendError: the batch is too large.
    """
    if batch > session.max_batch:
        raise _batch_too_large(session, batch)


def _deserialize(session: Session, file: Path) -> Any:
    """Read through a mapping: TensorRT copies the weights to the GPU, the host needs no copy of them."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = session.runtime.deserialize_cuda_engine(content)
    except (OSError, ValueError) as error:
        raise BackendError(f"{file} cannot be read ({error}); build it again: {session.rebuild}") from None
    if engine is None:
        raise session.failure(f"TensorRT does not load {file.name}")
    return engine
