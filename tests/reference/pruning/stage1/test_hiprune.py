"""HiPrune: anchors, their neighbours inside the grid, registers."""

from __future__ import annotations

import math

import pytest
import torch

from sts_export.reference import Choices, Crop, find_stage1
from sts_export.reference.pruning.stage1.hiprune import anchor_count
from tests.reference.pruning.crops import scored

STAGE = find_stage1("hiprune")
RECEIVED = [0.5, 0.1, 0.2, 0.9, 0.3, 0.6, 0.0, 0.7, 0.4, 0.0, 0.0, 0.8]  # 3 x 4


def kept(crop: Crop, keep: int, alpha: float = 1.0) -> list[int]:
    return sorted(STAGE(crop, keep, alpha=alpha).order.tolist())


def grid(anchor: int) -> Crop:
    middle = [0.0] * 12
    middle[anchor] = 1.0
    return scored(RECEIVED, 4, middle_received_attention=middle)


def test_number_of_anchors() -> None:
    assert [anchor_count(keep, 0.1) for keep in (1, 24, 25, 64, 74, 75, 192, 576)] == [0, 0, 1, 1, 1, 2, 4, 12]
    assert [anchor_count(keep, 1.0) for keep in (1, 2, 3, 5, 7, 8)] == [0, 0, 1, 1, 1, 2]


def test_neighbours_stay_inside_the_grid() -> None:
    # Token 4 begins the second row: 0 above, 8 below, 5 right. Token 3 ends the row above and is the largest of all.
    assert kept(grid(4), 3) == [0, 4, 5]  # the buffers of largest received attention
    assert kept(grid(4), 4) == [0, 4, 5, 8]
    assert kept(grid(4), 5) == [0, 3, 4, 5, 8]  # then the largest register
    assert kept(grid(7), 5) == [3, 5, 6, 7, 11]  # no token 8, which begins the next row, before 5
    assert kept(grid(0), 4) == [0, 1, 3, 4]


def test_neighbours_that_are_no_candidates_do_not_count() -> None:
    crop = grid(4)
    left = [token for token in range(12) if token not in (0, 5)]
    tower = {name: values[left] for name, values in crop.tower.items()}
    smaller = crop._replace(features=crop.features[left], tower=tower, places=crop.places[left])
    assert [left[token] for token in kept(smaller, 4)] == [3, 4, 8, 11]


def test_without_anchors_it_is_received_attention() -> None:
    assert kept(grid(4), 5, alpha=0.1) == sorted([3, 11, 7, 5, 0])


def test_margins_are_of_both_choices() -> None:
    middle = [0.0] * 12
    middle[4] = middle[9] = 1.0
    tied: Choices = STAGE(scored(RECEIVED, 4, middle_received_attention=middle), 3, alpha=1.0)
    assert tied.order.tolist()[0] == 4 and tied.margins[0] == 0.0
    clear: Choices = STAGE(grid(4), 3, alpha=1.0)
    assert clear.order.tolist() == [4, 5, 0]
    assert clear.margins.tolist() == pytest.approx([1.0, (0.6 - 0.4) / 0.6, (0.5 - 0.4) / 0.5])


def test_all_equal_and_all_kept() -> None:
    even = scored([0.5] * 12, 4, middle_received_attention=torch.full((12,), 0.5))
    assert kept(even, 3) == [0, 1, 4]  # anchor 0, its right and lower neighbour
    assert kept(even, 12) == list(range(12)) and math.isinf(STAGE(even, 12, alpha=0.1).margins.max())
    assert kept(scored([0.5], 1, middle_received_attention=[0.5]), 1) == [0]
