"""Pivoted QR against least squares and cases by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.reference import find_stage1
from tests.reference.pruning.crops import crop_of

STAGE = find_stage1("residual-qr")


def order(rows: list[list[float]], keep: int) -> list[int]:
    return STAGE(crop_of(torch.tensor(rows)), keep).order.tolist()


def test_by_hand() -> None:
    # Squared norms 1, 9, 9, 5, 0.25. After [3 0 0], what is left of them: 0, 0, 0, 1, 0.25; after [2 1 0] the last one only.
    rows = [[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.5]]
    assert order(rows, 5) == [1, 3, 4, 2, 0]  # nothing is left: by norm, the duplicate first
    choices = STAGE(crop_of(torch.tensor(rows)), 4)
    assert choices.margins.tolist() == [0.0, 0.75 / 9, 0.25 / 9, 8 / 9]


def test_what_is_below_the_limit_counts_as_nothing() -> None:
    assert order([[1.0, 0], [0.5, 2e-4], [0.9, 1e-5]], 3) == [0, 1, 2]  # 4e-8 is left of the second, 1e-10 of the third
    assert order([[1.0, 0], [0.5, 5e-5], [0.9, 1e-5]], 3) == [0, 2, 1]  # 2.5e-9
    assert order([[0.0, 0], [0, 0]], 2) == [0, 1]
    assert order([[0.0, 0.0]], 1) == [0]


def test_equal_tokens_take_the_lowest_index() -> None:
    assert order([[0.3, 0.7, 0.1]] * 5, 4) == [0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(0, 10**6), st.data())
def test_each_choice_is_farthest_from_the_span_of_those_before(count: int, seed: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, count))
    features = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    rows = features.double().numpy()
    chosen = STAGE(crop_of(features), keep).order.tolist()
    assert len(set(chosen)) == keep
    for step, token in enumerate(chosen):
        free = [i for i in range(count) if i not in chosen[:step]]
        left = rows[free]
        if step < 6:
            span = rows[chosen[:step]].T  # [C, step]
            left = left - (span @ np.linalg.lstsq(span, left.T, rcond=None)[0]).T if step else left
        squared = dict(zip(free, (left**2).sum(axis=1), strict=True))
        assert squared[token] >= max(squared.values()) - 1e-5
