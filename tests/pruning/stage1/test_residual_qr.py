"""Pivoted residual QR on ONNX Runtime against residuals in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.pruning.stage1.residual_qr import ResidualQr
from tests.pruning.stage1.stage_graphs import chosen_rows, draw_crops, stage_session

CLEAR = 3e-6
KINDS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}

fuzz = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


@cache
def graph(dtype: str) -> ort.InferenceSession:
    return stage_session(ResidualQr(), KINDS[dtype])


def trace(features: NDArray[Any], candidates: NDArray[np.bool_], keep: int) -> tuple[list[int], float]:
    """The choices among the candidates, and how clear the least clear of them was.

    float32 residuals are off by a few roundings of the rows, and so their squares by as many roundings of row times residual:
    that is what a choice must win by.  Of equal rows the first one wins, which is clear.
    """
    rows = np.flatnonzero(candidates)
    chosen, margins = list[int](), list[float]()
    x = features[rows].astype(np.float64)
    norms, residual = (x * x).sum(axis=1), x.copy()
    while len(chosen) < keep:
        squares = (residual * residual).sum(axis=1)
        squares[chosen] = -1
        by_norm = squares.max() <= 1e-8
        margins.append(0.0 if 5e-9 < squares.max() < 2e-8 else np.inf)  # the limit itself
        squares = np.where(squares < 0, -1, norms) if by_norm else squares
        best = int(np.argmax(squares))
        best = int(np.flatnonzero((squares >= 0) & (x == x[best]).all(axis=1))[0])  # numpy's own rounding aside
        others = squares[(squares >= 0) & (x != x[best]).any(axis=1)]
        if len(others) and squares[best] > 0:
            margins.append((squares[best] - others.max()) / np.sqrt(squares[best] * norms.max()))
        if not by_norm:
            direction = residual[best] / np.sqrt(squares[best])
            residual -= np.outer(residual @ direction, direction)
        chosen.append(best)
    return rows[chosen].tolist(), min(margins, default=np.inf)


def check(features: NDArray[Any], candidates: NDArray[np.bool_], shares: list[int]) -> None:
    expected = [trace(*crop) for crop in zip(features, candidates, shares, strict=True)]
    assume(all(margin > CLEAR for _, margin in expected))
    found = chosen_rows(graph(features.dtype.name), shares, {"features": features, "candidates": candidates})
    assert found == [rows for rows, _ in expected]


@fuzz
@given(st.data())
def test_random_features(data: st.DataObject) -> None:
    """Also more choices than the features have columns, after which the norms decide."""
    crops = draw_crops(data)
    width, dtype = data.draw(st.integers(1, 24), label="width"), data.draw(st.sampled_from(list(KINDS)), label="dtype")
    offset = data.draw(st.sampled_from([0.0, 3.0]), label="offset")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    features = (rng.standard_normal((*crops.candidates.shape, width)) * 2 + offset).astype(dtype)
    # What is no candidate is large: it would be first.
    features = np.where(crops.candidates[..., None], features, features * 6 + 20).astype(dtype)
    check(features, crops.candidates, crops.shares)


@fuzz
@given(st.data())
def test_low_rank_and_near_duplicates(data: st.DataObject) -> None:
    """A few kinds of tokens, equal, nearly so, or mixed: squared residuals fall to 1e-8 of the squares, or to nothing."""
    crops = draw_crops(data)
    shape, width = crops.candidates.shape, data.draw(st.integers(4, 24), label="width")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    kinds = rng.standard_normal((data.draw(st.integers(1, 6), label="kinds"), width)) * 3
    noise = data.draw(st.sampled_from([0.0, 1e-3, 1e-2]), label="noise")
    mixed = data.draw(st.booleans(), label="mixed")
    of_kind = rng.standard_normal((*shape, len(kinds))) @ kinds if mixed else kinds[rng.integers(0, len(kinds), shape)]
    features = (of_kind + noise * rng.standard_normal((*shape, width))).astype(np.float32)
    check(features, crops.candidates, crops.shares)


@fuzz
@given(st.data())
def test_exact_ties_go_to_the_lowest_row(data: st.DataObject) -> None:
    """Multiples of unit vectors: a residual is its square or nothing, and every number is exact."""
    crops = draw_crops(data)
    dtype = data.draw(st.sampled_from(list(KINDS)), label="dtype")
    width = data.draw(st.integers(1, 8), label="width")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    lengths = rng.choice([0.0, 0.5, 1.0, 2.0], (*crops.candidates.shape, 1))
    features = (np.eye(width)[rng.integers(0, width, crops.candidates.shape)] * lengths).astype(dtype)
    expected = [trace(*crop)[0] for crop in zip(features, crops.candidates, crops.shares, strict=True)]
    feeds = {"features": features, "candidates": crops.candidates}
    assert chosen_rows(graph(dtype), crops.shares, feeds) == expected


@pytest.mark.parametrize("seed", range(100))
def test_equal_rows(seed: int) -> None:
    """Of equal rows the first is kept, wherever they stand: a product's last columns are computed as all others."""
    rng = np.random.default_rng(seed)
    kinds = int(rng.integers(1, 30))
    of_row = np.concatenate([np.arange(kinds), rng.integers(0, kinds, int(rng.integers(0, 6 * kinds)))])
    rng.shuffle(of_row)
    features = (rng.standard_normal((kinds, int(rng.integers(kinds + 8, 80)))) * 3).astype(np.float32)[of_row]
    feeds = {"features": features[None], "candidates": np.ones((1, len(of_row)), bool)}
    (found,) = chosen_rows(graph("float32"), [kinds], feeds)
    assert found == [int(np.flatnonzero(of_row == of_row[row])[0]) for row in found]
    assert sorted(of_row[found]) == list(range(kinds))


def test_nothing_left_is_filled_by_norm() -> None:
    """One direction, of any length: first the longest, then by length; a black picture in order."""
    lengths = np.array([3, 1, 2, 5, 2, 0], np.float32)
    features = np.stack([np.outer(lengths, [1, 2, 2]), np.zeros((6, 3))]).astype(np.float32)
    feeds = {"features": features, "candidates": np.ones((2, 6), bool)}
    assert chosen_rows(graph("float32"), [6, 6], feeds) == [[3, 0, 2, 4, 1, 5], [0, 1, 2, 3, 4, 5]]
    tiny = {**feeds, "features": np.outer([1, 3, 2], [1e-5, 0])[None].astype(np.float32), "candidates": np.ones((1, 3), bool)}
    assert chosen_rows(graph("float32"), [3], tiny) == [[1, 2, 0]]


@pytest.mark.parametrize(("rows", "keep", "width"), [(576, 64, 128), (700, 96, 1024)])
def test_real_sizes(rows: int, keep: int, width: int) -> None:
    """With an offset, as vision towers have."""
    rng = np.random.default_rng(rows)
    features = (rng.standard_normal((1, rows, width)) + rng.standard_normal(width)).astype(np.float32)
    expected, margin = trace(features[0], np.ones(rows, bool), keep)
    assert margin > 1e-6, "choose another seed: rounding decides here"
    feeds = {"features": features, "candidates": np.ones((1, rows), bool)}
    assert chosen_rows(graph("float32"), [keep], feeds) == [expected]


def test_room_for_matrices() -> None:
    stage = ResidualQr()
    assert not stage.needs
    assert stage.scratch_bytes(5, 576) == 2 * 5 * 576**2 * 4
