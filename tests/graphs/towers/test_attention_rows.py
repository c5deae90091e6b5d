"""Received attention in steps, against numpy's in one."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.model import IR_VERSION, OPSET
from sts_export.graphs.towers.attention_rows import received_attention
from sts_export.graphs.towers.observed import Steps
from tests.graphs.onnx_models import session

HEAD_DIM, MOST = 4, 20
SCALE = 0.7


@cache
def encoder(heads: int, skip: int, at_once: int) -> ort.InferenceSession:
    """query, key [crops, heads, rows, head_dim] -> received [crops, rows]"""
    shape = ir.Shape(("crops", heads, "rows", HEAD_DIM))
    query, key = (ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape) for name in ("query", "key"))
    graph = ir.Graph([query, key], [], nodes=[], name="received", opset_imports={"": OPSET})
    builder = GraphBuilder(graph)
    steps = Steps(at_once, -(-MOST // at_once))
    found = received_attention(builder.op, query, key, heads=heads, scale=SCALE, skip=skip, steps=steps)
    found.type, found.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("crops", "rows"))
    builder.add_output(found, "received")
    return session(ir.Model(graph, ir_version=IR_VERSION))


def expected(query: NDArray[Any], key: NDArray[Any], skip: int) -> NDArray[Any]:
    scores = SCALE * np.einsum("chqd,chkd->chqk", query, key, dtype=np.float64)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: NDArray[Any] = (weights / weights.sum(axis=-1, keepdims=True))[:, :, skip:].mean(axis=(1, 2))
    return found


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(
    crops=st.integers(1, 3),
    heads=st.sampled_from([1, 3]),
    rows=st.integers(2, MOST),
    skip=st.sampled_from([0, 1]),
    at_once=st.sampled_from([1, 2, 5, 8, 40]),
    seed=st.integers(0, 1 << 16),
)
def test_any_step_gives_the_same(crops: int, heads: int, rows: int, skip: int, at_once: int, seed: int) -> None:
    """Steps that divide the rows, that do not, that have no rows, and one that is larger than all rows."""
    rng = np.random.default_rng(seed)
    query, key = (3 * rng.standard_normal((crops, heads, rows, HEAD_DIM), np.float32) for _ in range(2))
    (found,) = encoder(heads, skip, at_once).run(None, {"query": query, "key": key})
    np.testing.assert_allclose(found, expected(query, key, skip), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_large_scores_are_no_overflow() -> None:
    query = np.full((1, 1, 6, HEAD_DIM), 1e4, np.float32)
    key = np.zeros_like(query)
    key[0, 0, 2] = 1e4
    (found,) = encoder(1, 0, 5).run(None, {"query": query, "key": key})
    np.testing.assert_allclose(found, [[0, 0, 1, 0, 0, 0]], atol=1e-6)
