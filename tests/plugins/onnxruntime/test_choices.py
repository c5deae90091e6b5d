"""The operators on ONNX Runtime's CPU provider, to the index: against the equations in numpy, and the ONNX functions."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.kernels import DTYPES
from tests.plugins.onnxruntime.operator_models import LAST_TOKEN, REPULSION, operator_model, with_library
from tests.plugins.reference import exact_gram_case, exact_repulsion, repulsion
from tests.plugins.test_last_token_topk import Prompt
from tests.pruning.stage1.test_repulsion import choices as repulsion_function

pytestmark = pytest.mark.headers
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


@cache
def session(library: Path, name: str, dtype: str, value: float) -> Any:
    operator = REPULSION if name == "RepulsionSelect" else LAST_TOKEN
    return with_library(operator_model(operator, dtype, {operator.attribute: value}), library)


def fed(array: NDArray[Any]) -> NDArray[Any]:
    """float32 where numpy has no such type; the model casts it back."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def select(
    library: Path, features: NDArray[Any], first: list[int], steps: int, candidates: NDArray[np.bool_], epsilon: float = 1e-6
) -> list[list[int]]:
    feeds = {
        "features": fed(features),
        "first": np.array(first, np.int64),
        "candidates": candidates,
        "quota": np.zeros((len(features), steps), bool),
    }
    chosen = session(library, "RepulsionSelect", features.dtype.name, epsilon).run(None, feeds)[0]
    assert chosen.dtype == np.int64 and chosen.shape == (len(features), steps)
    return list(chosen.tolist())


@dtypes
@pytest.mark.parametrize(
    ("crops", "rows", "width", "steps"),
    [(1, 1, 1, 1), (3, 2, 5, 2), (5, 33, 24, 12), (1, 576, 32, 96), (2, 2880, 6, 20), (1, 4097, 8, 8), (1, 16384, 8, 5)],
)
def test_repulsion_chooses_what_the_equations_say(
    library: Path, dtype: Any, crops: int, rows: int, width: int, steps: int
) -> None:
    rng = np.random.default_rng(rows)
    features = (rng.standard_normal((crops, rows, width)) + 2 * rng.standard_normal(width)).astype(dtype)
    candidates = rng.random((crops, rows)) < 0.8
    first = rng.integers(0, rows, crops).tolist()
    candidates[np.arange(crops), first] = True
    compared = 0
    for crop, found in enumerate(select(library, features, first, steps, candidates)):
        expected = repulsion(features[crop], first[crop], steps, candidates[crop], 1e-6)
        assert found[: expected.clear] == expected.chosen[: expected.clear]
        compared += expected.clear
    assert compared > 0.5 * crops * min(steps, rows)


@dtypes
def test_repulsion_takes_the_lowest_of_equals(library: Path, dtype: Any) -> None:
    """Exact distances: no choice is excused, and ties abound."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        rows, width = int(rng.integers(1, 48)), int(rng.integers(1, 12))
        features = rng.integers(-2, 3, (1, rows, width)).astype(dtype)
        candidates = rng.random((1, rows)) < 0.6
        first = int(rng.integers(0, rows))
        candidates[0, first] = True
        steps = int(rng.integers(1, candidates.sum() + 1))
        found = select(library, features, [first], steps, candidates, 0.5)
        assert found == [exact_repulsion(features[0], first, steps, candidates[0], 0.5)]


@pytest.mark.parametrize("by_row", [False, True], ids=["matrix", "by_row"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: dtype.name)
def test_repulsion_like_the_function(library: Path, dtype: Any, by_row: bool) -> None:
    """Either form of it, where its Gram matrix is exact: integers around 0."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        features, first, steps, candidates = exact_gram_case(rng, dtype)
        expected = repulsion_function(features, first, steps, 1e-6, candidates, by_row=by_row)
        assert select(library, features, first, steps, candidates) == expected


def topk(library: Path, prompt: Prompt) -> tuple[list[list[int]], list[int]]:
    feeds = {
        "query": fed(prompt.query),
        "key": fed(prompt.key),
        "attention_mask": prompt.mask,
        "visual_mask": prompt.visual_mask,
        "visual_embeds": fed(np.zeros((len(prompt.query), prompt.visual, 3), prompt.query.dtype)),
        "stage2_slots": np.full(prompt.keep, -7, np.int64),
    }
    kept, last = session(library, "LastTokenTopK", prompt.query.dtype.name, prompt.scale).run(None, feeds)
    assert kept.dtype == last.dtype == np.int64
    return kept.tolist(), last.tolist()


@dtypes
def test_last_token_keeps_what_the_equations_say(library: Path, dtype: Any) -> None:
    """Batches padded on the right, grouped heads, repeated keys."""
    rng = np.random.default_rng(8)
    clear = total = 0
    for _ in range(60):
        prompt = Prompt(rng, dtype)
        kept, last = topk(library, prompt)
        for request in range(len(kept)):
            rows, last_row, proven = prompt.expected(request)
            if proven:
                assert (kept[request], last[request]) == (rows, last_row)
            clear, total = clear + proven, total + 1
    assert clear > 0.9 * total


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: dtype.name)
def test_last_token_like_the_function(library: Path, dtype: Any) -> None:
    rng = np.random.default_rng(21)
    clear = 0
    for _ in range(40):
        prompt = Prompt(rng, dtype)
        if all(prompt.expected(request)[2] for request in range(len(prompt.query))):
            assert topk(library, prompt) == prompt.function_body()
            clear += 1
    assert clear > 30
