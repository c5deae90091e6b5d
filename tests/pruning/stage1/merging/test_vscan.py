"""VScan's stage against a float64 form of it in plain loops."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.graphs.needs import (
    CLS_ATTENTION,
    EARLY_CLS_ATTENTION,
    EARLY_RECEIVED_ATTENTION,
    GRID,
    RECEIVED_ATTENTION,
)
from sts_export.pruning.stage1.vscan import VScan
from tests.graphs.onnx_models import TYPES
from tests.pruning.stage1.merging.random_crops import cosines, draw_case, largest, nearest, scores
from tests.pruning.stage1.merging.stage_models import Chosen, Expected, choose, same
from tests.pruning.stage1.stage_graphs import stage_session

fuzz = settings(max_examples=120, deadline=None, derandomize=True)
WIDTH = 8
NEEDS = {"cls": (EARLY_CLS_ATTENTION, CLS_ATTENTION), "received": (EARLY_RECEIVED_ATTENTION, RECEIVED_ATTENTION)}


def expected_crop(
    features: NDArray[Any], early: NDArray[Any], score: NDArray[Any], mask: NDArray[np.bool_], keep: int, columns: int
) -> Expected:
    rows, height = np.flatnonzero(mask).tolist(), len(features) // columns
    windows: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        windows.setdefault(((row // columns) * 4 // height, (row % columns) * 4 // columns), []).append(row)
    kept = [row for window in windows.values() for row in largest(early, np.array(window), keep // 2 // 16)]
    kept += largest(score, np.array([row for row in rows if row not in kept], int), keep - len(kept))
    kept.sort()
    merged, joined, margin = features.astype(np.float64), [-1] * len(features), float("inf")
    if not keep:
        return Expected([], merged, joined)
    similarity = cosines(features)
    for row in rows:
        if row not in kept:
            joined[row], clear = nearest(similarity[row], kept)
            margin = min(margin, clear)
    for row in kept:
        members = [other for other in rows if joined[other] == row]
        merged[row] = (merged[row] + features[members].astype(np.float64).sum(axis=0)) / (1 + len(members))
    return Expected(kept, merged, joined, margin=margin)


@cache
def vscan_session(dtype: str, score: Any) -> ort.InferenceSession:
    return stage_session(VScan(score), ir.DataType[dtype], width=WIDTH)


def run(
    score: str,
    features: NDArray[Any],
    keep: list[int],
    candidates: NDArray[np.bool_] | None,
    attention: tuple[NDArray[np.float32], NDArray[np.float32]],
    columns: int,
) -> Chosen:
    needed = {**dict(zip(NEEDS[score], attention, strict=True)), GRID: np.array([columns])}
    return choose(vscan_session(TYPES[features.dtype.name], score), features, keep, candidates, needed)


@pytest.mark.parametrize("exact", [False, True], ids=["random", "ties"])
@fuzz
@given(data=st.data())
def test_random_crops(data: st.DataObject, exact: bool) -> None:
    """Unequal crops of any grid, windows with few tokens or none, K of 0, 1, some and all."""
    score = data.draw(st.sampled_from(list(NEEDS)), label="score")
    columns = data.draw(st.integers(1, 12), label="columns")
    case = draw_case(data, exact=exact, columns=columns, most_rows=144)
    early, late = (scores(case.rng, case.candidates.shape, exact=exact) for _ in range(2))
    # What is no candidate would be chosen first.
    early, late = (np.where(case.candidates, each, 2).astype(np.float32) for each in (early, late))
    crops = zip(case.features, early, late, case.candidates, case.keep, strict=True)
    expected = [expected_crop(*crop, columns) for crop in crops]
    assume(all(each.margin > 1e-5 for each in expected))
    found = run(score, case.features, case.keep, case.candidates, (early, late), columns)
    assert found.last is None and all(rows == sorted(rows) for rows in found.rows)
    same(found, expected, case.features)


@pytest.mark.parametrize("keep", [64, 32, 31, 288])
def test_real_size(keep: int) -> None:
    """24 x 24 tokens, 16 windows of 6 x 6: two, one, none and nine of each."""
    rng = np.random.default_rng(keep)
    features = rng.standard_normal((1, 576, WIDTH)).astype(np.float32)
    early, late = (rng.random((1, 576)).astype(np.float32) for _ in range(2))
    expected = expected_crop(features[0], early[0], late[0], np.ones(576, bool), keep, 24)
    assert expected.margin > 1e-6
    same(run("cls", features, [keep], None, (early, late), 24), [expected], features)


def test_a_window_is_a_quarter_of_the_grid() -> None:
    """Every window keeps its own best of the early layer, however low, and the other layer decides on the rest."""
    early, late = np.zeros((1, 576), np.float32), np.zeros((1, 576), np.float32)
    best = [6 * down * 24 + 6 * across + 30 for down in range(4) for across in range(4)]  # line 1, column 6 of each window
    early[0, best] = 0.001
    late[0, 100:116] = 1
    features = np.eye(WIDTH, dtype=np.float32)[np.arange(576) % WIDTH][None]
    found = run("cls", features, [32], None, (early, late), 24)
    assert len(found.rows[0]) == 32 and set(found.rows[0]) == {*best, *range(100, 116)}


def test_what_it_needs() -> None:
    assert VScan().needs == {EARLY_CLS_ATTENTION, CLS_ATTENTION, GRID} and VScan.merges
    assert VScan("received").needs == {EARLY_RECEIVED_ATTENTION, RECEIVED_ATTENTION, GRID}
