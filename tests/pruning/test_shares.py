"""How the crops of an image share K."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.pruning.budget import share_keep

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@pytest.mark.parametrize(
    ("keep", "candidates", "shares"),
    [
        (480, [576] * 5, [96] * 5),
        (482, [576] * 5, [97, 97, 96, 96, 96]),
        (10, [10, 0, 3], [7, 0, 3]),
        (9, [1, 9, 9], [1, 4, 4]),
        (10, [1, 9, 9], [1, 5, 4]),
        (100, [3, 4], [3, 4]),
        (2, [5, 5, 5], [1, 1, 0]),
        (5, [0, 0, 9], [0, 0, 5]),
        (5, [], []),
    ],
)
def test_shares_by_hand(keep: int, candidates: list[int], shares: list[int]) -> None:
    assert share_keep(keep, candidates) == shares


@fixed
@given(st.integers(1, 300), st.lists(st.integers(0, 60), max_size=7))
def test_shares_are_as_equal_as_the_crops_allow(keep: int, candidates: list[int]) -> None:
    shares = share_keep(keep, candidates)
    assert sum(shares) == min(keep, sum(candidates))
    assert all(0 <= share <= count for share, count in zip(shares, candidates, strict=True))
    # Crops that could keep more have equal shares, but for what does not divide, which the first of them get.
    unfilled = [share for share, count in zip(shares, candidates, strict=True) if share < count]
    if unfilled:
        assert max(shares) - min(unfilled) <= 1
        assert unfilled == sorted(unfilled, reverse=True)
