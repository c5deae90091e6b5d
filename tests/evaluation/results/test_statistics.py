"""Intervals and tests against values of others."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.evaluation.results.statistics import bootstrap, mcnemar, mean_interval, wilson


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda asked: st.tuples(st.integers(0, asked), st.just(asked))))
def test_wilson_holds_the_share_and_is_symmetric(counts: tuple[int, int]) -> None:
    right, asked = counts
    low, high = wilson(right, asked)
    assert 0 <= low <= right / asked <= high <= 1
    other_low, other_high = wilson(asked - right, asked)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high), abs=1e-12)


def test_a_mean_of_parts_is_drawn_and_the_same_each_time() -> None:
    values = [0.0, 0.3, 0.6, 1.0] * 50
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(values)
    half = 1.96 * np.std(values) / np.sqrt(len(values))
    assert (low, high) == pytest.approx((0.475 - half, 0.475 + half), abs=0.01)
    assert mean_interval([1.0, 0.0, 1.0]) == wilson(2, 3)


def test_strata_are_drawn_separately() -> None:
    """What is the same in all rows of a stratum has no spread, however many strata there are."""
    strata = {"a": np.full((5, 1), 2.0), "b": np.full((3, 1), 7.0)}
    assert bootstrap(strata, lambda sums: sums["a"][:, 0] + sums["b"][:, 0]) == (31.0, 31.0)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (59, 121, 4.434e-06),  # by scipy.stats.binomtest(59, 180)
    ],
)
def test_mcnemar(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-3)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_of_thousands_of_pairs() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0 < mcnemar(500, 1500) < 1e-100
    assert mcnemar(10, 990) == pytest.approx(2 * sum(comb(1000, k) for k in range(11)) / 2**1000)
