"""Tensors on the engine's side against numpy.  On the CPU, where what CUDA does runs through the same code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export.backends.onnxruntime.memory import Memory, View, first_rows
from sts_export.backends.onnxruntime.sessions import Sessions

WIDTH = 5


def memory(dtype: str) -> Memory:
    return Memory(Sessions("cpu", 1), dtype)


def content(view: View) -> NDArray[Any]:
    """What a graph reads that the view is bound to, by numpy's own reading of the memory."""
    whole: NDArray[Any] = view.tensor.numpy()
    begin = view.offset // whole.itemsize
    return whole.reshape(-1)[begin : begin + np.prod(view.shape)].reshape(view.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("parts", [[(6, 4)], [(3, 3), (5, 1)], [(4, 2), (2, 2)], [(1, 1), (9, 4), (5, 5), (3, 0)]], ids=str)
def test_rows_are_joined(dtype: str, parts: Sequence[tuple[int, int]]) -> None:
    """Parts with more rows than count: the rest does not show, and is not written behind the end."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((rows, WIDTH)).astype(dtype) for rows, _ in parts]
    views = [
        first_rows(ort.OrtValue.ortvalue_from_numpy(array), count) for array, (_, count) in zip(arrays, parts, strict=True)
    ]
    wanted = np.concatenate([array[:count] for array, (_, count) in zip(arrays, parts, strict=True)])[None]
    joined = memory(dtype).joined(views)
    assert joined.shape == wanted.shape
    np.testing.assert_array_equal(content(joined), wanted)
    np.testing.assert_array_equal(memory(dtype).fetch(joined), wanted)


def test_one_part_is_not_copied() -> None:
    tensor = ort.OrtValue.ortvalue_from_numpy(np.ones((6, WIDTH), np.float32))
    joined = memory("float32").joined([first_rows(tensor, 4)])
    assert joined.shape == (1, 4, WIDTH) and joined.address == tensor.data_ptr()
    whole = memory("float32").joined([tensor])
    assert whole.shape == (1, 6, WIDTH) and whole.address == tensor.data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_a_view_is_read_where_it_lies(dtype: str) -> None:
    """Rows 2 and 3 of five, of any type: fetched, and cut once more."""
    array = np.arange(5 * WIDTH).reshape(5, WIDTH).astype(dtype)
    store, tensor = memory("float32"), ort.OrtValue.ortvalue_from_numpy(array)
    view = View(tensor, (2, WIDTH), 2 * WIDTH * array.itemsize)
    np.testing.assert_array_equal(store.fetch(view), array[2:4])
    np.testing.assert_array_equal(store.fetch(first_rows(view, 1)), array[2:3])
    np.testing.assert_array_equal(store.fetch(tensor), array)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_zeros(dtype: str) -> None:
    """As the CPU makes them, and as a GPU does."""
    store = memory(dtype)
    filled = store._expand(store.from_numpy(np.zeros(1, np.float32)), (2, 3, 4))
    for tensor in (store.zeros((2, 3, 4)), filled):
        found = store.fetch(tensor)
        assert found.dtype == dtype and found.shape == (2, 3, 4) and not found.any()
        assert tensor.tensor_size_in_bytes() == 24 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_go_in_as_the_graphs_take_them(dtype: str) -> None:
    """bfloat16 by its bits, rounded as ml_dtypes does."""
    numbers = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    tensor = memory(dtype).from_numpy(numbers[:, ::2])
    name = {"float32": "float"}.get(dtype, dtype)
    assert (tensor.data_type(), tensor.shape()) == (f"tensor({name})", [3, 2])
    wanted = np.ascontiguousarray(numbers[:, ::2]).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    held: NDArray[Any] = tensor._numpy_obj
    np.testing.assert_array_equal(held.view(wanted.dtype), wanted)
