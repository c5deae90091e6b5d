"""Random keys on ONNX Runtime against Python's unbounded whole numbers."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.functions import tensor
from sts_export.graphs.model import OPSET
from sts_export.graphs.random_keys import random_keys
from tests.graphs.onnx_models import session

MODULUS = 2147483647


def key(seed: int, *words: int) -> int:
    """The formula as it is written."""
    x = seed % (MODULUS - 1) + 1
    for added in [*(word + 1 for word in words), 10368889, 10368889]:
        x = pow((x + added) % MODULUS, 5, MODULUS)
    return x // 128


@cache
def keys_session() -> ort.InferenceSession:
    """keys of (2, word, number): seed [batch, 1], word [1], number [rows] -> [batch, rows]."""
    shapes: dict[str, tuple[int | str, ...]] = {"seed": ("batch", 1), "word": (1,), "number": ("rows",)}
    values = [tensor(name, ir.DataType.INT64, *shape) for name, shape in shapes.items()]
    graph = ir.Graph(values, [], nodes=[], name="keys", opset_imports={"": OPSET})
    builder = GraphBuilder(graph)
    seed, word, number = values
    keys = random_keys(builder.op, seed, 2, word, number)
    builder.add_output(keys, "keys")
    keys.type = ir.TensorType(ir.DataType.FLOAT)
    return session(ir.Model(graph, ir_version=11))


def keys(seeds: list[int], word: int, numbers: list[int]) -> NDArray[np.float32]:
    feeds = {"seed": np.array(seeds, np.int64)[:, None], "word": np.array([word]), "number": np.array(numbers, np.int64)}
    found: NDArray[np.float32] = keys_session().run(["keys"], feeds)[0]
    return found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=3),
    st.integers(0, 1 << 31),
    st.lists(st.integers(0, 1 << 31), min_size=1, max_size=40),
)
def test_every_seed_and_word(seeds: list[int], word: int, numbers: list[int]) -> None:
    found = keys(seeds, word, numbers)
    assert found.dtype == np.float32
    assert found.astype(int).tolist() == [[key(seed, 2, word, number) for number in numbers] for seed in seeds]


def test_keys_are_spread_evenly() -> None:
    """Of a thousand neighbouring seeds and rows each sixteenth of the range gets its share."""
    found = keys(list(range(1000)), 0, list(range(1000)))
    assert found.min() >= 0 and found.max() < 1 << 24
    for axis in (0, 1):
        counts = np.stack([(found // (1 << 20) == part).sum(axis=axis) for part in range(16)])
        assert abs(counts.mean(axis=1) - 62.5).max() < 1 and counts.min() > 20 and counts.max() < 120
    # Which row is first of all does not follow from the seed's neighbours.
    assert len(np.unique(found.argmax(axis=1))) > 500
