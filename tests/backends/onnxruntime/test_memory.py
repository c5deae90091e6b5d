"""Tensors on the engine's side against numpy.  On the CPU, where what CUDA does runs through the same code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export.backends.onnxruntime.memory import Memory, Rows, View
from sts_export.backends.onnxruntime.sessions import Sessions

WIDTH = 5


def memory(dtype: str) -> Memory:
    return Memory(Sessions("cpu", 1), dtype)


def content(view: View) -> NDArray[Any]:
    """What a graph reads that the view is bound to, by numpy's own reading of the memory."""
    whole: NDArray[Any] = view.tensor.numpy()
    return whole.reshape(-1)[: np.prod(view.shape)].reshape(view.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "requests", [[[(6, 4)]], [[(3, 3), (5, 1)]], [[(4, 2)], [(2, 2)]], [[(1, 1), (9, 4)], [(5, 5), (3, 0)]]], ids=str
)
def test_rows_are_joined(dtype: str, requests: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Parts with more rows than count: the rest does not show, and is not written behind the end."""
    rng = np.random.default_rng(0)
    arrays = [[rng.standard_normal((rows, WIDTH)).astype(dtype) for rows, _ in request] for request in requests]
    parts = [
        [Rows(ort.OrtValue.ortvalue_from_numpy(array), count) for array, (_, count) in zip(row, request, strict=True)]
        for row, request in zip(arrays, requests, strict=True)
    ]
    wanted = np.stack(
        [
            np.concatenate([array[:count] for array, (_, count) in zip(row, request, strict=True)])
            for row, request in zip(arrays, requests, strict=True)
        ]
    )
    joined = memory(dtype).joined(parts)
    assert joined.shape == wanted.shape
    np.testing.assert_array_equal(content(joined), wanted)


def test_one_part_is_not_copied() -> None:
    part = Rows(ort.OrtValue.ortvalue_from_numpy(np.ones((6, WIDTH), np.float32)), 4)
    joined = memory("float32").joined([[part]])
    assert joined.shape == (1, 4, WIDTH) and joined.tensor.data_ptr() == part.tensor.data_ptr()


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
