"""CDPruner's stage against the exact greedy choice: the largest conditional variance, by solving in float64."""

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

from sts_export.errors import BudgetError
from sts_export.graphs.needs import PROJECTED, TEXT
from sts_export.pruning.stage1.cdpruner import CDPruner
from tests.graphs.onnx_models import TYPES
from tests.pruning.stage1.merging.random_crops import cosines, draw_case, vectors
from tests.pruning.stage1.merging.stage_models import Expected, choose, same
from tests.pruning.stage1.stage_graphs import stage_session

fuzz = settings(max_examples=120, deadline=None, derandomize=True)
WIDTH = 24


def relevance(projected: NDArray[Any], text: NDArray[Any], candidates: NDArray[np.bool_], weight: float) -> NDArray[np.float64]:
    """[crops, rows], the mean of all cosines one by one."""
    raw = np.array(
        [
            -np.mean([cosines(np.stack([row, word]))[0, 1] for word in text])
            for row in projected.reshape(-1, projected.shape[-1])
        ]
    ).reshape(candidates.shape)
    least, most = raw[candidates].min(), raw[candidates].max()
    return np.asarray(1 - weight + weight * (raw - least) / (most - least + 1e-6))


def expected_crop(features: NDArray[Any], r: NDArray[np.float64], mask: NDArray[np.bool_], keep: int) -> Expected:
    """Token by token the one of largest variance given those chosen; among ones that nothing is left of, the lowest row.

    The variance is L_ii - L_iS inverse(L_SS) L_Si, which is what d2 holds.
    """
    rows, kernel = np.flatnonzero(mask), cosines(features) * np.outer(r, r)
    chosen: list[int] = []
    margin = float("inf")
    for _ in range(keep):
        free = [row for row in rows.tolist() if row not in chosen]
        left = kernel[free, free]
        if chosen:
            inverse = np.linalg.pinv(kernel[np.ix_(chosen, chosen)], hermitian=True)
            across = kernel[np.ix_(free, chosen)]
            left = left - np.einsum("ij,jk,ik->i", across, inverse, across)
        left = np.maximum(left, 0)
        best = float(left.max())
        others = left[left < best - 1e-9]
        margin = min(margin, best, best - float(others.max()) if len(others) else best)
        chosen.append(free[int(np.argmax(left >= best - 1e-9))])
    return Expected(chosen, margin=margin)


@cache
def cdpruner_session(dtype: str, weight: float) -> ort.InferenceSession:
    return stage_session(CDPruner(weight), ir.DataType[dtype], width=WIDTH)


@fuzz
@given(data=st.data())
def test_random_crops(data: st.DataObject) -> None:
    """Unequal crops with other rows between their tokens; relevance is compared over all crops."""
    weight = data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="weight")
    case = draw_case(data, exact=False, most_rows=16)  # of no more rows than dimensions: no token is made of others
    shape, dtype = case.candidates.shape, case.features.dtype
    features, projected = (vectors(case.rng, shape, exact=False, width=WIDTH).astype(dtype) for _ in range(2))
    text = vectors(case.rng, (data.draw(st.integers(1, 5), label="text"),), exact=False, width=WIDTH).astype(dtype)
    # What is no candidate would be the most relevant or the least.
    extreme = case.rng.choice([-9, 9], (*shape, 1)) * text.sum(axis=0)
    projected = np.where(case.candidates[..., None], projected, extreme).astype(dtype)
    r = relevance(projected, text, case.candidates, weight)
    # The last tokens of a crop may have no relevance at all: the lowest row of them would be a tie that rounding breaks.
    assume(weight < 1 or max(case.keep) < case.candidates.sum(axis=1).min())
    crops = zip(features, r, case.candidates, case.keep, strict=True)
    expected = [expected_crop(*crop) for crop in crops]
    assume(all(each.margin > 1e-4 for each in expected))
    found = choose(
        cdpruner_session(TYPES[dtype.name], weight), features, case.keep, case.candidates, {PROJECTED: projected, TEXT: text}
    )
    same(found, expected, features)
    assert found.rows == [each.rows for each in expected]  # in their order, too


@fuzz
@given(data=st.data())
def test_duplicates_come_last(data: st.DataObject) -> None:
    """Tokens along a few axes, all equally relevant: one along each axis, lowest row first, then the others in their order."""
    case = draw_case(data, exact=True)
    features = np.pad(case.features, ((0, 0), (0, 0), (0, WIDTH - case.features.shape[-1])))
    projected = np.ones_like(features)
    needed = {PROJECTED: projected, TEXT: np.ones((3, WIDTH), features.dtype)}
    found = choose(cdpruner_session(TYPES[features.dtype.name], 0.0), features, case.keep, case.candidates, needed)
    for crop, mask, keep, rows in zip(features, case.candidates, case.keep, found.rows, strict=True):
        tokens = np.flatnonzero(mask)
        axes = crop[tokens].argmax(axis=1)
        first = sorted(int(tokens[np.argmax(axes == axis)]) for axis in set(axes.tolist()))
        assert rows == [*first, *(row for row in tokens.tolist() if row not in first)][:keep]


def test_the_prompt_decides() -> None:
    """Of two groups of tokens the one that is unlike the prompt comes first: the sign is the method's own."""
    features = np.eye(WIDTH, dtype=np.float32)[None, :8]
    projected = np.repeat(np.eye(WIDTH, dtype=np.float32)[[0, 1]], 4, axis=0)[None]
    session = cdpruner_session("FLOAT", 0.5)
    for word, expected in ((0, [4, 5, 6, 7]), (1, [0, 1, 2, 3])):
        text = np.eye(WIDTH, dtype=np.float32)[[word]]
        assert choose(session, features, [4], None, {PROJECTED: projected, TEXT: text}).rows == [expected]


@pytest.mark.parametrize("keep", [1, 2])
def test_one_token(keep: int) -> None:
    """A crop of one token, beside one of two."""
    features = np.random.default_rng(0).standard_normal((2, 2, WIDTH)).astype(np.float32)
    candidates = np.array([[False, True], [True, True]])
    needed = {PROJECTED: features, TEXT: features[0, :1]}
    found = choose(cdpruner_session("FLOAT", 0.5), features, [1, keep], candidates, needed)
    assert found.rows[0] == [1] and (keep == 1 or sorted(found.rows[1]) == [0, 1])


def test_settings() -> None:
    assert CDPruner().needs == {PROJECTED, TEXT} and not CDPruner.merges
    for weight in (-0.1, 1.5):
        with pytest.raises(BudgetError, match="relevance_weight must be between 0 and 1"):
            CDPruner(weight)
