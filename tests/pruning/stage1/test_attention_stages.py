"""Stages that keep the largest of one score of the tower, and random, whose scores are keys."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import BudgetError
from sts_export.graphs.needs import CLS_ATTENTION, RECEIVED_ATTENTION, SEED
from sts_export.pruning.settings import make_stage
from sts_export.pruning.stage import Stage1
from sts_export.pruning.stage1.cls_attention import ClsAttention
from sts_export.pruning.stage1.random import Random
from sts_export.pruning.stage1.received_attention import ReceivedAttention
from tests.pruning.stage1.stage_graphs import chosen_rows, draw_crops, largest, stage_session

SCORED = {CLS_ATTENTION: ClsAttention(), RECEIVED_ATTENTION: ReceivedAttention()}

fuzz = settings(max_examples=100, deadline=None, derandomize=True)


@cache
def graph(stage: Stage1) -> ort.InferenceSession:
    return stage_session(stage)


@pytest.mark.parametrize("need", SCORED)
@fuzz
@given(st.data())
def test_the_largest_scores_of_candidates(need: str, data: st.DataObject) -> None:
    """In float32, with few values and hence ties, or many."""
    crops = draw_crops(data)
    values = data.draw(st.sampled_from([1, 3, 1 << 20]), label="values")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    scores = (rng.integers(0, values, crops.candidates.shape) / values).astype(np.float32)
    scores = np.where(crops.candidates, scores, 2).astype(np.float32)  # others would come first
    assert SCORED[need].needs == {need}
    found = chosen_rows(graph(SCORED[need]), crops.shares, {"candidates": crops.candidates, need: scores})
    assert found == [largest(*crop) for crop in zip(scores, crops.candidates, crops.shares, strict=True)]


def random_key(seed: int, crop: int, row: int) -> int:
    """The formula of docs/methods/random.md in Python's whole numbers."""
    modulus = 2147483647
    x = seed % (modulus - 1) + 1
    for added in (2, crop + 1, row + 1, 10368889, 10368889):
        x = pow((x + added) % modulus, 5, modulus)
    return x // 128


@fuzz
@given(st.data())
def test_random_rows_follow_from_seed_crop_and_row(data: st.DataObject) -> None:
    crops = draw_crops(data)
    seed = data.draw(st.integers(-(1 << 63), (1 << 63) - 1), label="seed")
    feeds = {"candidates": crops.candidates, SEED: np.array([seed])}
    count, rows = crops.candidates.shape
    keys = np.array([[random_key(seed, crop, row) for row in range(rows)] for crop in range(count)])
    expected = [largest(*crop) for crop in zip(keys, crops.candidates, crops.shares, strict=True)]
    assert chosen_rows(graph(Random()), crops.shares, feeds) == expected


def test_random_rows_are_uniform() -> None:
    """Of 2000 seeds each of 36 rows is among the 9 kept a quarter of the time: within five standard deviations."""
    candidates = np.ones((1, 36), bool)
    feeds = [{"candidates": candidates, SEED: np.array([seed])} for seed in range(2000)]
    counts = np.bincount([row for feed in feeds for row in chosen_rows(graph(Random()), [9], feed)[0]], minlength=36)
    assert abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("stage", [ClsAttention, ReceivedAttention, Random])
def test_no_settings(stage: type[Stage1]) -> None:
    with pytest.raises(BudgetError, match=r"^\S+ has no setting 'alpha': it has none$"):
        make_stage(stage, {"alpha": 1.0})
