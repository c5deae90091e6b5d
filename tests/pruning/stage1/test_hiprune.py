"""HiPrune on ONNX Runtime against loops over the grid."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.errors import BudgetError
from sts_export.graphs.needs import GRID, MIDDLE_RECEIVED_ATTENTION, RECEIVED_ATTENTION
from sts_export.pruning.settings import make_stage
from sts_export.pruning.stage1.hiprune import HiPrune
from tests.pruning.stage1.stage_graphs import chosen_rows, draw_crops, largest, stage_session

MIDDLE, LATE = MIDDLE_RECEIVED_ATTENTION, RECEIVED_ATTENTION


@cache
def graph(alpha: float) -> ort.InferenceSession:
    return stage_session(HiPrune(alpha), max_rows=700)


def hiprune(
    middle: NDArray[np.float32],
    late: NDArray[np.float32],
    candidates: NDArray[np.bool_],
    keep: int,
    *,
    columns: int,
    alpha: float,
) -> set[int]:
    """The rows kept of one crop: [rows], [rows], [rows] bool."""
    anchors = largest(middle, candidates, math.floor(keep * alpha / 5 + 0.5 + 1e-6))
    buffers = set()
    for anchor in anchors:
        row, column = divmod(anchor, columns)
        for near_row, near in ((row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)):
            if 0 <= near < columns and 0 <= near_row < len(late) // columns and candidates[near_row * columns + near]:
                buffers.add(near_row * columns + near)

    def rank(row: int) -> tuple[int, float, int]:
        return (0 if row in anchors else 1 if row in buffers else 2), -float(late[row]), row

    return set(sorted(np.flatnonzero(candidates).tolist(), key=rank)[:keep])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_anchors_neighbours_and_the_rest(data: st.DataObject) -> None:
    """Grids of one row and one column among them, many ties or none."""
    alpha = data.draw(st.sampled_from([1.0, 0.5, 0.1]), label="alpha")
    crops = draw_crops(data)
    count, rows = crops.candidates.shape
    columns = data.draw(st.sampled_from([size for size in range(1, rows + 1) if rows % size == 0]), label="columns")
    values = data.draw(st.sampled_from([1, 3, 1 << 20]), label="values")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    middle, late = ((rng.integers(0, values, (count, rows)) / values).astype(np.float32) for _ in range(2))
    feeds = {"candidates": crops.candidates, MIDDLE: middle, LATE: late, GRID: np.array([columns])}
    found = chosen_rows(graph(alpha), crops.shares, feeds)
    assert all(len(set(rows)) == len(rows) for rows in found)
    each = zip(middle, late, crops.candidates, crops.shares, strict=True)
    assert [set(rows) for rows in found] == [hiprune(*crop, columns=columns, alpha=alpha) for crop in each]


def test_classes_come_in_order() -> None:
    """3 by 3: the anchor is the corner; its neighbours come before a row that receives more, and do not wrap."""
    middle, late = np.zeros((1, 9), np.float32), np.full((1, 9), 0.5, np.float32)
    middle[0, 2], late[0, 3] = 1, 0.9
    feeds = {"candidates": np.ones((1, 9), bool), MIDDLE: middle, LATE: late, GRID: np.array([3])}
    assert chosen_rows(graph(1.0), [5], feeds) == [[2, 1, 5, 3, 0]]


def test_scores_of_a_class_are_not_rounded() -> None:
    """Attention over 576 rows differs in its last bits, which a bonus for the class would cost."""
    late = (np.float32(1 / 576) + np.arange(576, dtype=np.float32) * np.float32(2**-33))[None]
    middle = np.zeros((1, 576), np.float32)
    feeds = {"candidates": np.ones((1, 576), bool), MIDDLE: middle, LATE: late, GRID: np.array([24])}
    (found,) = chosen_rows(graph(0.1), [64], feeds)
    assert set(found) == hiprune(middle[0], late[0], feeds["candidates"][0], 64, columns=24, alpha=0.1)
    assert len(set(late[0].tolist())) == 576 and len(set((late[0] + 1).tolist())) < 576


@pytest.mark.parametrize("keep", [24, 25, 26, 64, 75, 125, 225, 675])
def test_halves_are_rounded_up(keep: int) -> None:
    """K alpha / 5 + 1/2 is whole at 25, 75 and 125; anchors are those whose middle attention alone is large."""
    middle = np.arange(700, dtype=np.float32)[None]
    feeds = {"candidates": np.ones((1, 700), bool), MIDDLE: middle, LATE: -middle, GRID: np.array([1])}
    (found,) = chosen_rows(graph(0.1), [keep], feeds)
    anchors = int(keep * 2 + 50) // 100
    # Behind them comes the neighbour of the last one; without one, row 0.
    assert found[: anchors + 1] == [*range(699, 699 - anchors, -1), 699 - anchors if anchors else 0]


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.01])
def test_impossible_alpha(alpha: float) -> None:
    with pytest.raises(BudgetError, match=r"^alpha must be above 0 and at most 1, not \S+$"):
        HiPrune(alpha)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "much"])
def test_alpha_is_a_number(alpha: object) -> None:
    with pytest.raises(BudgetError, match=r"^alpha must be a"):
        make_stage(HiPrune, {"alpha": alpha})


def test_needs() -> None:
    assert HiPrune().needs == {MIDDLE, LATE, GRID}
