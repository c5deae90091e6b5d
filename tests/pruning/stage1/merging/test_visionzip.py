"""VisionZip's stage against a float64 form of it in plain loops."""

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

from sts_export.graphs.needs import CLS_ATTENTION, CLS_FEATURES, MEAN_KEYS, RECEIVED_ATTENTION
from sts_export.pruning.stage1.visionzip import VisionZip
from tests.graphs.onnx_models import TYPES
from tests.pruning.stage1.merging.random_crops import cosines, draw_case, largest, nearest, scores, vectors
from tests.pruning.stage1.merging.stage_models import Chosen, Expected, choose, same
from tests.pruning.stage1.stage_graphs import stage_session

fuzz = settings(max_examples=120, deadline=None, derandomize=True)
WIDTH = 8


def expected_crop(
    features: NDArray[Any], score: NDArray[Any], keys: NDArray[Any], mask: NDArray[np.bool_], keep: int, *, has_cls: bool
) -> Expected:
    rows, merged = np.flatnonzero(mask).tolist(), features.astype(np.float64)
    joined = [-1] * len(features)
    if keep in (0, len(rows)):
        return Expected(rows[:keep], merged, joined)
    contextual = max(1, (10 * keep + 32) // 64)
    dominant_count = keep - contextual
    cls = [len(features)] if has_cls and dominant_count else []
    dominant = largest(score, np.array(rows), dominant_count - len(cls))
    rest = [row for row in rows if row not in dominant]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    similarity, margin = cosines(keys), float("inf")
    for row in rest:
        if row not in targets:
            joined[row], clear = nearest(similarity[row], targets)
            margin = min(margin, clear)
    for target in targets:
        if members := [row for row in rest if joined[row] == target]:
            merged[target] = merged[target] + features[members].astype(np.float64).mean(axis=0)
    return Expected([*cls, *dominant, *targets], merged, joined, targets, margin)


@cache
def visionzip_session(dtype: str, score: Any, max_crops: int) -> ort.InferenceSession:
    return stage_session(VisionZip(score), ir.DataType[dtype], width=WIDTH, max_crops=max_crops)


def run(
    score: str,
    features: NDArray[Any],
    keep: list[int],
    candidates: NDArray[np.bool_] | None,
    attention: NDArray[np.float32],
    keys: NDArray[np.float32],
    *,
    max_crops: int = 4,
) -> Chosen:
    needed = {MEAN_KEYS: keys, CLS_ATTENTION if score == "cls" else RECEIVED_ATTENTION: attention}
    session = visionzip_session(TYPES[features.dtype.name], score, max_crops)
    if any(each.name == CLS_FEATURES for each in session.get_inputs()):
        needed[CLS_FEATURES] = np.zeros((len(features), WIDTH), features.dtype)
    return choose(session, features, keep, candidates, needed)


@pytest.mark.parametrize("exact", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("score", ["cls", "received"])
@fuzz
@given(data=st.data())
def test_random_crops(data: st.DataObject, score: str, exact: bool) -> None:
    """Unequal crops with other rows between their tokens, K of 0, 1, some and all."""
    case = draw_case(data, exact=exact)
    shape = case.candidates.shape
    attention, keys = scores(case.rng, shape, exact=exact), vectors(case.rng, shape, exact=exact)
    # What is no candidate would be chosen first, and be what every row is most similar to.
    attention = np.where(case.candidates, attention, 2).astype(np.float32)
    expected = [
        expected_crop(*crop, has_cls=score == "cls")
        for crop in zip(case.features, attention, keys, case.candidates, case.keep, strict=True)
    ]
    assume(all(each.margin > 1e-5 for each in expected))
    alone = len(case.keep) == 1
    found = run(score, case.features, case.keep, case.candidates, attention, keys, max_crops=1 if alone else 4)
    assert (found.last is not None) == alone
    same(found, expected, case.features)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_real_size(dtype: Any) -> None:
    """LLaVA-1.5's counts: 54 + 10 of 576, the CLS token among the 54."""
    rng = np.random.default_rng(1)
    features = rng.standard_normal((1, 576, WIDTH)).astype(dtype)
    attention, keys = rng.random((1, 576)).astype(np.float32), rng.standard_normal((1, 576, 64)).astype(np.float32)
    expected = expected_crop(features[0], attention[0], keys[0], np.ones(576, bool), 64, has_cls=True)
    assert expected.margin > 1e-6 and len(expected.last) == 10 and 576 in expected.rows
    found = run("cls", features, [64], None, attention, keys, max_crops=1)
    assert len(set(found.rows[0])) == 64
    same(found, [expected], features)


def test_what_it_needs() -> None:
    assert VisionZip().needs == {CLS_ATTENTION, CLS_FEATURES, MEAN_KEYS} and VisionZip.merges
    assert VisionZip("received").needs == {RECEIVED_ATTENTION, MEAN_KEYS}
