"""Tensors of ONNX Runtime on the CPU or on a CUDA GPU, where they stay until they are fetched.

One operator is enough to fill, to copy and to bring back any of them, bfloat16 included, which numpy does not know: Expand of
one zero, and of a tensor to its own shape.  It is a session of its own, so that long-lived tensors do not lie among those that
a graph makes and drops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sts_export.backends.onnxruntime.sessions import SessionFactory, guarded
from sts_export.dtypes import ELEMENT_TYPES, numpy_dtype
from sts_export.errors import BackendError

_EXPAND_OPSET, _EXPAND_IR_VERSION = 13, 8


@dataclass(frozen=True)
class TensorView:
    """A part of a tensor, or all of it, under a shape of its own; it has to be contiguous.

    Args:
        offset: bytes before it.
    """

    tensor: Any
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def address(self) -> int:
        address: int = self.tensor.data_ptr() + self.offset
        return address


def first_rows(tensor: Any, count: int) -> TensorView:
    """The first ``count`` of a tensor [at least count, ...]."""
    view = whole(tensor)
    return replace(view, shape=(count, *view.shape[1:]))


def whole(tensor: Any) -> TensorView:
    """A tensor or view as a view."""
    return tensor if isinstance(tensor, TensorView) else TensorView(tensor, tuple(tensor.shape()))


class Memory:
    """Tensors of one floating-point type on one device.

    Args:
        sessions: makes sessions on the device.
        dtype: float32, float16 or (CUDA only) bfloat16.
    """

    def __init__(self, sessions: SessionFactory, dtype: str) -> None:
        self.device = sessions.device
        self._sessions = sessions
        self._dtype = dtype
        self._onnx_type = ELEMENT_TYPES[dtype].onnx

    def zeros(self, shape: Sequence[int]) -> Any:
        """An OrtValue on the device.

        Raises:
            BackendError: not enough memory.
        """
        if self.device == "cpu":
            try:
                # Pages come when they are used.
                return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, numpy_dtype(self._dtype)))
            except MemoryError:
                raise BackendError(
                    "not enough memory: run fewer requests together, or export with smaller capacities"
                ) from None
        zero = self.from_numpy(np.zeros(1, np.float32))
        return self._expand(zero, shape)

    def from_numpy(self, array: NDArray[Any], dtype: str | None = None) -> Any:
        """Numbers as an OrtValue on the host; binding it to an input copies it to the device.

        Args:
            dtype: float32, float16 or bfloat16; None takes that of this memory.
        """
        dtype = dtype or self._dtype
        converted = np.ascontiguousarray(array.astype(numpy_dtype(dtype), copy=False))
        if dtype == "bfloat16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(converted.view(np.uint16), self._onnx_type)
        return ort.OrtValue.ortvalue_from_numpy(converted)

    def joined(self, tensors: Sequence[Any]) -> TensorView:
        """Tensors [rows, width] of this memory's type, one after another: [1, all rows, width].

        Nothing is copied where there is only one.
        """
        views = [whole(tensor) for tensor in tensors]
        width = views[0].shape[1]
        shape = (1, sum(view.shape[0] for view in views), width)
        if len(views) == 1:
            return replace(views[0], shape=shape)
        together = self.zeros(shape)
        address, row_bytes = together.data_ptr(), width * ELEMENT_TYPES[self._dtype].itemsize
        for view in views:
            self._expand(view, view.shape, device=self.device, address=address)
            address += view.shape[0] * row_bytes
        return TensorView(together, shape)

    def fetch(self, tensor: Any) -> NDArray[Any]:
        """A tensor of any type on the host."""
        view = whole(tensor)
        if view.tensor.element_type() == ELEMENT_TYPES["bfloat16"].onnx:
            host = np.empty(view.shape, numpy_dtype("bfloat16"))
            self._expand(view, host.shape, device="cpu", address=host.ctypes.data)
            return host
        array: NDArray[Any] = view.tensor.numpy()
        if view.shape == array.shape:
            return array
        begin = view.offset // array.itemsize
        return array.reshape(-1)[begin : begin + math.prod(view.shape)].reshape(view.shape)

    def bind(self, binding: Any, name: str, value: Any) -> None:
        """Bind a numpy array, an OrtValue or a view to an input."""
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        elif isinstance(value, TensorView):
            binding.bind_input(name, self.device, 0, value.tensor.element_type(), value.shape, value.address)
        else:
            binding.bind_ortvalue_input(name, value)

    def bind_output(self, binding: Any, name: str, view: TensorView) -> None:
        """Have an output written to where the view is."""
        binding.bind_output(name, self.device, 0, view.tensor.element_type(), view.shape, view.address)

    def _expand(self, source: Any, shape: Sequence[int], *, device: str = "", address: int | None = None) -> Any:
        """Repeat or copy ``source`` to ``shape``: into a new tensor, or to an address on a device."""
        session = self._expand_session
        binding = session.io_binding()
        self.bind(binding, "source", source)
        binding.bind_cpu_input("shape", np.array(shape, np.int64))
        if address is None:
            binding.bind_output("target", self.device, 0)
        else:
            binding.bind_output("target", device, 0, self._onnx_type, tuple(shape), address)
        guarded(self.device, session.run_with_iobinding, binding)
        return binding.get_outputs()[0]

    @cached_property
    def _expand_session(self) -> Any:
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            [helper.make_node("Expand", ["source", "shape"], ["target"])],
            "expand",
            [
                helper.make_tensor_value_info("source", self._onnx_type, None),
                helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"]),
            ],
            [helper.make_tensor_value_info("target", self._onnx_type, None)],
        )
        opset = helper.make_opsetid("", _EXPAND_OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_EXPAND_IR_VERSION)
        return self._sessions.open(model.SerializeToString())
