"""VScan before the LLM: windows, the rest by late attention, and what the others are added to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.reference import Choices, find_stage1
from sts_export.reference.pruning.stage1.vscan import windows
from tests.reference.pruning.crops import crop_of, raster_of

STAGE: Any = find_stage1("vscan")


def test_windows_of_grids() -> None:
    assert windows(raster_of(576, 24), (24, 24)).bincount().tolist() == [36] * 16
    assert windows(raster_of(576, 24), (24, 24)).view(24, 24)[::6, ::6].tolist() == torch.arange(16).view(4, 4).tolist()
    # 3 x 5: rows in windows 0, 1, 2 of 4; columns 0 0 1 2 3.
    assert windows(raster_of(15, 5), (3, 5)).view(3, 5).tolist() == [[0, 0, 1, 2, 3], [4, 4, 5, 6, 7], [8, 8, 9, 10, 11]]


@pytest.mark.parametrize("score", ["cls", "received"])
def test_by_hand(score: str) -> None:
    """8 x 8, K = 34: one of each 2 x 2 window by early attention, 18 by late attention."""
    early, late = torch.zeros(8, 8), torch.linspace(1, 0, 64)
    early[1::2, 1::2] = 1.0  # the lower right one of each window
    early[0, 6] = 2.0
    other = {"early_cls_attention": -early.flatten(), "cls_attention": -late}
    given = {name.replace("cls", "received"): -values for name, values in other.items()}
    if score == "cls":
        other, given = {name: -values for name, values in other.items()}, {name: -values for name, values in given.items()}
    choices: Choices = STAGE(crop_of(torch.ones(64, 3), 8, **other, **given), 34, score=score)
    local = [row * 8 + column for row in range(1, 8, 2) for column in range(1, 8, 2) if (row, column) != (1, 7)] + [6]
    rest = [token for token in range(64) if token not in local]
    assert sorted(choices.order.tolist()) == sorted(local + rest[:18])
    assert choices.last is None


def test_small_budgets_and_empty_windows() -> None:
    late = torch.linspace(1, 0, 64)
    attention = {"early_cls_attention": torch.linspace(0, 1, 64), "cls_attention": late}
    whole = crop_of(torch.ones(64, 3), 8, **attention)
    assert sorted(STAGE(whole, 31, score="cls").order.tolist()) == list(range(31))  # 15 // 16 of each window
    # Of an unpadded crop five rows are left: four windows have two candidates, four have none.
    left = list(range(40))
    tower = {name: values[left] for name, values in whole.tower.items()}
    cut = whole._replace(features=whole.features[left], tower=tower, places=whole.places[left])
    local = {9, 11, 13, 15, 25, 27, 29, 31, 33, 35, 37, 39}
    others = [token for token in range(40) if token not in local]
    assert set(STAGE(cut, 34, score="cls").order.tolist()) == local | set(others[:22])
    # 2 x 20: windows of one row and five columns.
    two_rows = crop_of(torch.ones(40, 3), 20, early_cls_attention=torch.linspace(0, 1, 40), cls_attention=torch.zeros(40))
    chosen = set(STAGE(two_rows, 33, score="cls").order.tolist())
    assert set(range(40)) - chosen == {31, 32, 33, 35, 36, 37, 38}


def test_merging_by_hand() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 0.1], [3.0, 3.0], [6.0, -1.0]])
    crop = crop_of(features, 5, early_cls_attention=torch.zeros(5), cls_attention=[1.0, 0.9, 0.0, 0.0, 0.0])
    choices: Choices = STAGE(crop, 2, score="cls")
    assert choices.order.tolist() == [0, 1]
    assert choices.joined is not None and choices.joined.tolist() == [-1, -1, 0, 0, 0]  # 3 is tied: the lower one
    assert choices.features is not None
    torch.testing.assert_close(choices.features[:2], torch.tensor([[12 / 4, 2.1 / 4], [0.0, 4.0]]))
    assert choices.margins[0] == 0.0
    half = STAGE(crop._replace(features=features.bfloat16()), 2, score="cls")
    assert half.features is not None and half.features.dtype == torch.bfloat16


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.data())
def test_sums_are_kept(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    """Each kept token times its members is their sum, so that all of it is that of all tokens."""
    count, generator = rows * columns, torch.Generator().manual_seed(seed)
    keep = data.draw(st.integers(1, count))
    features = torch.randint(-3, 4, (count, 3), generator=generator).float()
    attention = torch.randint(0, 4, (2, count), generator=generator).float()
    crop = crop_of(features, columns, early_cls_attention=attention[0], cls_attention=attention[1])
    choices: Choices = STAGE(crop, keep, score="cls")
    assert choices.joined is not None and choices.features is not None
    kept = choices.order.tolist()
    assert len(set(kept)) == keep and all((into == -1) == (token in kept) for token, into in enumerate(choices.joined.tolist()))
    members = torch.tensor([1 + int((choices.joined == token).sum()) for token in kept])
    assert int(members.sum()) == count
    torch.testing.assert_close((choices.features[kept] * members[:, None]).sum(dim=0), features.sum(dim=0), atol=1e-4, rtol=0)
