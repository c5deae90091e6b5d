"""Keys by content: names, types, shapes and bytes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from sts_export.media.content import content_key

ONE = {"x": np.array([1, 2, 3], np.int32)}


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([1, 2, 4], np.int32)},
        {"y": np.array([1, 2, 3], np.int32)},
        {"x": np.array([[1, 2, 3]], np.int32)},
        {"x": np.array([1, 2, 3], np.uint32)},
        {"x": np.array([1, 2, 3], np.int32), "y": np.zeros(1)},
        {"x": np.array([1, 2, 3], np.int32), "y": np.zeros(0)},
        {},
    ],
)
def test_names_types_shapes_and_bytes_make_the_key(other: dict[str, NDArray[Any]]) -> None:
    assert content_key(ONE) != content_key(other)


def test_how_an_array_lies_in_memory_does_not() -> None:
    assert content_key(ONE) == content_key({"x": np.array([1, 0, 2, 0, 3], np.int32)[::2]})
    rows = np.arange(6).reshape(2, 3)
    assert content_key({"a": rows, "b": ONE["x"]}) == content_key({"b": ONE["x"], "a": np.asfortranarray(rows)})


def test_other_things_do() -> None:
    keys = {content_key(ONE), content_key(ONE, 1), content_key(ONE, "1"), content_key(ONE, 1, 2), content_key(ONE, 12)}
    assert len(keys) == 5


def test_types_that_numpy_does_not_know() -> None:
    ones = {"x": np.ones(2, ml_dtypes.bfloat16)}
    assert content_key(ones) != content_key({"x": np.zeros(2, ml_dtypes.bfloat16)})
    assert content_key({"x": np.array(True)}) != content_key({"x": np.array([True])})
