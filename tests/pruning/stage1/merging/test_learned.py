"""LearnPruner's stage against plain torch and float64 loops."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.graphs.model import parameters
from sts_export.pruning.stage1.learned import Learned
from tests.graphs.onnx_models import TYPES
from tests.pruning.stage1.merging.random_crops import cosines, draw_case, largest
from tests.pruning.stage1.merging.stage_models import Expected, choose, same
from tests.pruning.stage1.stage_graphs import stage_model, stage_session

torch.set_num_threads(1)
fuzz = settings(max_examples=120, deadline=None, derandomize=True)
WIDTH = 8


def random_selector(seed: int = 3) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in Learned().own_weights(WIDTH).items()}


def constant_selector() -> dict[str, NDArray[np.float32]]:
    """Every token is as likely as any other."""
    return {name: np.zeros_like(values) for name, values in random_selector().items()}


def probabilities(weights: dict[str, NDArray[np.float32]], features: NDArray[Any]) -> NDArray[np.float32]:
    """[crops, rows], by torch's own layers."""
    w = {name.removeprefix("selector."): torch.from_numpy(values) for name, values in weights.items()}
    hidden = torch.nn.functional.gelu(
        torch.nn.functional.linear(torch.from_numpy(features).float(), w["linear_1.weight"], w["linear_1.bias"])
    )
    both = torch.nn.functional.linear(hidden, w["linear_2.weight"], w["linear_2.bias"])
    return np.asarray(both.softmax(-1)[..., 1].numpy())


def expected_crop(features: NDArray[Any], probability: NDArray[Any], mask: NDArray[np.bool_], keep: int) -> Expected:
    rows = np.flatnonzero(mask)
    by_probability = min(keep, max(1, 9 * keep // 10))
    chosen = largest(probability, rows, by_probability)
    ordered = np.sort(probability[rows].astype(np.float64))[::-1]
    gaps = -np.diff(ordered[: by_probability + 1])
    margin = float(gaps[gaps > 0].min()) if (gaps > 0).any() else float("inf")
    similarity = cosines(features)
    for _ in range(keep - by_probability):
        free = [row for row in rows.tolist() if row not in chosen]
        closest = similarity[np.ix_(free, chosen)].max(axis=1)
        best = float(closest.min())
        others = closest[closest > best + 1e-9]
        margin = min(margin, float(others.min()) - best if len(others) else float("inf"))
        chosen.append(free[int(np.argmax(closest <= best + 1e-9))])
    return Expected(chosen, margin=margin)


@cache
def learned_session(dtype: str, exact: bool) -> ort.InferenceSession:
    weights = constant_selector() if exact else random_selector()
    return stage_session(Learned(), ir.DataType[dtype], weights, width=WIDTH)


@pytest.mark.parametrize("exact", [False, True], ids=["random", "ties"])
@fuzz
@given(data=st.data())
def test_random_crops(data: st.DataObject, exact: bool) -> None:
    """Unequal crops with other rows between their tokens, K of 0, 1, some and all."""
    case = draw_case(data, exact=exact, most_rows=60)
    probability = probabilities(constant_selector() if exact else random_selector(), case.features)
    crops = zip(case.features, probability, case.candidates, case.keep, strict=True)
    expected = [expected_crop(*crop) for crop in crops]
    assume(all(each.margin > 1e-5 for each in expected))
    found = choose(learned_session(TYPES[case.features.dtype.name], exact), case.features, case.keep, case.candidates)
    same(found, expected, case.features)
    assert found.rows == [each.rows for each in expected]  # in their order, too


def test_real_size() -> None:
    """57 of 64 by probability, the other 7 as unlike as can be."""
    features = np.random.default_rng(2).standard_normal((1, 576, WIDTH)).astype(np.float32)
    probability = probabilities(random_selector(), features)[0]
    expected = expected_crop(features[0], probability, np.ones(576, bool), 64)
    found = choose(learned_session("FLOAT", False), features, [64])
    assert found.rows[0][:57] == largest(probability, np.arange(576), 57)
    same(found, [expected], features)


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16"])
def test_its_weights_are_float32(dtype: str) -> None:
    model = stage_model(Learned(), ir.DataType[dtype], width=16)
    found = {parameter.name: tuple(parameter.shape) for parameter in parameters(model)}
    assert found == Learned().own_weights(16)
    assert {parameter.dtype.name for parameter in parameters(model)} == {"FLOAT"}


def test_what_it_needs() -> None:
    assert Learned().needs == frozenset() and not Learned.merges
    assert Learned().own_weights(1024)["selector.linear_1.weight"] == (512, 1024)
