"""DivPrune on ONNX Runtime against a loop in float64."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.graphs.needs import PROJECTED
from sts_export.pruning.stage1 import divprune
from sts_export.pruning.stage1.divprune import DivPrune
from tests.pruning.stage1.stage_graphs import chosen_rows, draw_crops, stage_session

# A cosine distance this much above the next one's is so in float32, too.
CLEAR = 3e-6
KINDS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}

fuzz = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


@cache
def graph(dtype: str, by_row: bool) -> ort.InferenceSession:
    return stage_session(DivPrune(), KINDS[dtype], max_rows=16384 if by_row else 90)


def trace(features: NDArray[Any], candidates: NDArray[np.bool_], keep: int) -> tuple[list[int], float]:
    """The choices among the candidates, and by how much the least clear of them won."""
    rows = np.flatnonzero(candidates)
    chosen, margins = list[int](), list[float]()
    x = features[rows].astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    distances = 1 - x @ x.T
    values = np.where(np.eye(len(rows), dtype=bool), 9, distances).min(axis=1, initial=9)
    nearest = np.full(len(rows), 9.0)
    while len(chosen) < keep:
        best = int(np.argmax(values))
        margins.append(values[best] - max(np.delete(values, best), default=-9))
        chosen.append(best)
        nearest = np.minimum(nearest, distances[best])
        values = np.where(np.isin(np.arange(len(rows)), chosen), -9, nearest)
    return rows[chosen].tolist(), min(margins, default=9)


@pytest.mark.parametrize("by_row", [False, True], ids=["matrix", "by_row"])
@fuzz
@given(st.data())
def test_random_features(by_row: bool, data: st.DataObject) -> None:
    """Every crop by itself; what is no candidate is nobody's neighbour, though it lies next to a candidate."""
    crops = draw_crops(data)
    width, dtype = data.draw(st.integers(2, 24), label="width"), data.draw(st.sampled_from(list(KINDS)), label="dtype")
    offset = data.draw(st.sampled_from([0.0, 1.0]), label="offset")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    features = (rng.standard_normal((*crops.candidates.shape, width)) * 2 + offset).astype(dtype)
    features = np.where(crops.candidates[..., None], features, np.roll(features, 1, axis=1))
    expected = [trace(*crop) for crop in zip(features, crops.candidates, crops.shares, strict=True)]
    assume(all(margin > CLEAR for _, margin in expected))
    feeds = {"features": features, "candidates": crops.candidates, PROJECTED: features}
    assert chosen_rows(graph(dtype, by_row), crops.shares, feeds) == [rows for rows, _ in expected]


@pytest.mark.parametrize("by_row", [False, True], ids=["matrix", "by_row"])
@fuzz
@given(st.data())
def test_exact_ties_go_to_the_lowest_row(by_row: bool, data: st.DataObject) -> None:
    """Of four or sixteen signs: cosines are multiples of 1/8, most choices are ties, many tokens duplicates."""
    crops = draw_crops(data)
    width, dtype = data.draw(st.sampled_from([4, 16]), label="width"), data.draw(st.sampled_from(list(KINDS)), label="dtype")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    kinds = np.where(rng.random((data.draw(st.integers(1, 9), label="kinds"), width)) < 0.5, -1, 1)
    features = kinds[rng.integers(0, len(kinds), crops.candidates.shape)].astype(dtype)
    features *= rng.choice([0.5, 1, 4], (*crops.candidates.shape, 1)).astype(dtype)  # lengths do not matter
    features *= (rng.random((*crops.candidates.shape, 1)) < 0.9).astype(dtype)  # nor does a row of zeros fail
    expected = [trace(*crop)[0] for crop in zip(features, crops.candidates, crops.shares, strict=True)]
    feeds = {"features": features, "candidates": crops.candidates, PROJECTED: features}
    assert chosen_rows(graph(dtype, by_row), crops.shares, feeds) == expected


def test_a_black_picture() -> None:
    """No direction tells anything: the lowest rows; also where all are zeros."""
    for value in (0.0, 0.5):
        features = np.full((2, 9, 4), value, np.float32)
        candidates = np.stack([np.ones(9, bool), np.arange(9) % 2 == 1])
        feeds = {"features": features, "candidates": candidates, PROJECTED: features}
        assert chosen_rows(graph("float32", False), [5, 3], feeds) == [[0, 1, 2, 3, 4], [1, 3, 5]]


@pytest.mark.parametrize("rows", [576, 700])
def test_real_sizes(rows: int) -> None:
    """Several blocks of rows for the first choice, the last of them not full."""
    assert rows > divprune.BLOCK and rows % divprune.BLOCK
    rng = np.random.default_rng(rows)
    features = (rng.standard_normal((2, rows, 64)) + 2 * rng.standard_normal(64)).astype(np.float32)
    candidates = rng.random((2, rows)) < 0.9
    expected = [trace(*crop) for crop in zip(features, candidates, [64, 40], strict=True)]
    assert all(margin > 1e-7 for _, margin in expected), "choose another seed: rounding decides here"
    run = partial(chosen_rows, shares=[64, 40], feeds={"features": features, "candidates": candidates, PROJECTED: features})
    assert run(graph("float32", False)) == run(graph("float32", True)) == [chosen for chosen, _ in expected]


def test_room_for_matrices() -> None:
    stage = DivPrune()
    assert stage.needs == {PROJECTED}
    assert stage.scratch_bytes(1, 16384) == 1 << 30
    assert stage.scratch_bytes(5, 576) == 3 * 5 * 576**2 * 4
    assert stage.scratch_bytes(1, 4096) == 3 << 26
