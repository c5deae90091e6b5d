"""DART: pivots by hand, what each takes, and that exactly K' are kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sts_export.reference import find_stage2
from sts_export.reference.pruning.stage2.dart import pivots, shares
from tests.reference.pruning.stage2.prefills import prefill_of

STAGE = find_stage2("dart")


def kept(kinds: str, sizes: list[float], final: Tensor, keep: int) -> list[int]:
    """Sizes: of each row's key, half of it in each of two heads, one of them negative."""
    half = torch.tensor(sizes) / 2
    return STAGE(prefill_of(kinds, torch.stack([half, -half])[:, :, None], final=final), keep).chosen.tolist()


def test_shares() -> None:
    assert shares(64, 4, 8) == [8] * 8  # the public code keeps 68
    assert shares(20, 4, 8) == [2] * 8
    assert shares(15, 4, 8) == [2, 2, 2, 1, 1, 1, 1, 1]  # 11 are missing, each pivot takes one, three one more
    assert shares(7, 4, 8) == [1, 1, 1, 0, 0, 0, 0, 0]
    assert shares(7, 4, 5) == [1] * 5
    assert shares(9, 4, 4) == [2] * 4
    assert shares(9, 1, 1) == [9]


def test_pivots() -> None:
    scores = torch.tensor([5.0, 1, 7, 7, 2, 9, 9, 3])
    assert pivots(scores, torch.arange(8)) == [5, 6, 2, 3]
    assert pivots(scores, torch.tensor([1, 4])) == [4, 1]


def test_by_hand() -> None:
    """Rows 1 to 8 are visual, 0 and 9 text, of which only 9 is behind the picture."""
    kinds = "tvvvvvvvvt"
    sizes = [99.0, 1, 8, 1, 7, 1, 6, 1, 5, 3]  # visual pivots 2, 4, 6, 8; text pivot 9
    final = torch.zeros(10, 2)
    final[:, 0] = 1.0
    assert kept(kinds, sizes, final, 3) == [1, 3, 5]  # the three of largest keys, rows 2, 4, 6
    assert kept(kinds, sizes, final, 4) == [1, 3, 5, 7]
    # All alike: ties go to the lowest row.  K' = 6 is one a pivot, and they stop after two.
    assert kept(kinds, sizes, final, 6) == [0, 1, 2, 3, 5, 7]
    # The pivot of row 2 looks away from row 7, that of row 4 from row 5.
    final[2], final[7], final[4], final[5] = (torch.tensor(each) for each in ([0.0, 1], [0, -1.0], [1.0, -1], [-1.0, 1]))
    assert kept(kinds, sizes, final, 5) == [1, 3, 5, 6, 7]
    assert kept(kinds, sizes, final, 6) == [1, 3, 4, 5, 6, 7]
    assert kept(kinds, sizes, final, 8) == kept(kinds, sizes, final, 20) == list(range(8))


def test_text_before_the_picture_is_no_pivot() -> None:
    kinds, sizes, final = "tvvvvvvt", [9.0, 4, 4, 4, 4, 1, 1, 1], torch.zeros(8, 3)
    final[:, 0], final[5, 1], final[6, 2] = 1.0, 1.0, 3.0
    # Five pivots, one row each: row 1's takes row 6 as the least like it.
    assert kept(kinds, sizes, final, 5) == [0, 1, 2, 3, 5]
    # Were row 0 a pivot it would be the first one, and would take row 5.
    final[0] = torch.tensor([0.0, -1, 0])
    assert kept(kinds, sizes, final, 5) == [0, 1, 2, 3, 5]


@settings(max_examples=100, deadline=None)
@given(st.text("tvn", min_size=1, max_size=30), st.integers(1, 30), st.integers(0, 10**6))
def test_exactly_as_many_as_asked_for(kinds: str, keep: int, seed: int) -> None:
    kinds += "vt"
    generator = torch.Generator().manual_seed(seed)
    key = torch.randint(-2, 3, (2, len(kinds), 3), generator=generator).float()
    final = torch.randint(-1, 2, (len(kinds), 3), generator=generator).float()
    chosen = STAGE(prefill_of(kinds, key, final=final), keep).chosen.tolist()
    assert len(chosen) == min(keep, kinds.count("v")) and chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(kinds.count("v")))


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 30), st.integers(1, 30), st.integers(0, 10**6))
def test_the_largest_scores_are_kept(visual: int, keep: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    key, final = (torch.randn(*shape, generator=generator) for shape in ((2, visual + 8, 3), (visual + 8, 5)))
    found = STAGE(prefill_of("tt" + "v" * visual + "tttttt", key, final=final), keep)
    assert found.scores is not None
    assert found.chosen.tolist() == sorted(found.scores.topk(min(keep, visual)).indices.tolist())


def test_margin_of_pivots() -> None:
    """The fourth and the fifth of the visual rows, or of the text behind them, whichever are closer."""

    def margin(visual: list[float], text: list[float], keep: int = 5) -> float:
        kinds, half = "v" * len(visual) + "t" * len(text), torch.tensor([*visual, *text]) / 2
        prefill = prefill_of(kinds, torch.stack([half, -half])[:, :, None], final=torch.eye(len(kinds)))
        return STAGE(prefill, keep).margin

    visual, text = [9.0, 10, 8, 9, 7, 1], [5.0, 5, 5, 4, 1]
    assert margin(visual, text) == pytest.approx(1 / 8)
    assert margin(visual, [*text[:4], 3.9]) == pytest.approx(0.1 / 4)
    assert margin(visual, text[:4]) == pytest.approx(1 / 8)
    assert margin(visual[:4], text[:4]) == margin(visual, text, 4) == math.inf
