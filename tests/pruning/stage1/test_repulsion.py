"""sts::RepulsionSelect on ONNX Runtime against the reference's selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.selector import selector
from sts_export.pruning.stage1.repulsion import Repulsion, repulsion_select
from sts_export.reference import repulsion_trace
from tests.graphs.onnx_models import TYPES, one_call

torch.set_num_threads(1)
EPSILON = 1e-6
# A choice this clear (relative to the chosen value) is the same however float32 is rounded.
CLEAR = 1e-3

fuzz = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


Select = Callable[..., list[list[int]]]


@cache
def repulsion_session(dtype: str, epsilon: float, by_row: bool, optimized: bool) -> ort.InferenceSession:
    inputs = [
        ("features", dtype, ["crops", "rows", "width"]),
        ("first", "INT64", ["crops"]),
        ("candidates", "BOOL", ["crops", "rows"]),
        ("quota", "BOOL", ["crops", "steps"]),
    ]
    return one_call(repulsion_select(by_row=by_row), inputs, ["chosen"], optimized=optimized, epsilon=epsilon)


def choices(
    features: NDArray[Any],
    first: Sequence[int],
    keep: int,
    epsilon: float = EPSILON,
    candidates: NDArray[np.bool_] | None = None,
    quota: NDArray[np.bool_] | None = None,
    *,
    by_row: bool,
    optimized: bool = True,
) -> list[list[int]]:
    """sts::RepulsionSelect: features [crops, N, C] -> K choices of each crop, in their order."""
    feeds = {
        "features": features,
        "first": np.array(first, np.int64),
        "candidates": np.ones(features.shape[:2], bool) if candidates is None else candidates,
        "quota": np.ones((len(features), keep), bool) if quota is None else quota,
    }
    chosen = repulsion_session(TYPES[features.dtype.name], epsilon, by_row, optimized).run(None, feeds)[0]
    assert chosen.dtype == np.int64 and chosen.shape == (len(features), keep)
    return list(chosen.tolist())


@pytest.fixture(scope="module", params=[False, True], ids=["matrix", "by_row"])
def select(request: pytest.FixtureRequest) -> Select:
    """``choices`` of either form."""
    return partial(choices, by_row=request.param)


def reference_trace(
    features: NDArray[Any], first: int, keep: int, epsilon: float = EPSILON, candidates: NDArray[np.bool_] | None = None
) -> tuple[list[int], float]:
    """The reference's choices among the candidates alone, from a given first one, and the least clear of them."""
    rows = np.arange(len(features)) if candidates is None else np.flatnonzero(candidates)
    saliency = torch.from_numpy(rows == first).float()
    trace = repulsion_trace(torch.from_numpy(features[rows]), keep, anchor="saliency", saliency=saliency, epsilon=epsilon)
    return rows[trace.order.numpy()].tolist(), float(trace.margins[1:].min()) if keep > 1 else float("inf")


@fuzz
@given(st.data())
def test_random_features(select: Select, data: st.DataObject) -> None:
    """Any N, K, width and number of crops, in float32 and float16, wherever float32 can tell the candidates apart."""
    tokens = data.draw(st.integers(1, 40), label="N")
    keep = data.draw(st.integers(1, tokens), label="K")
    crops, width = data.draw(st.integers(1, 4), label="crops"), data.draw(st.integers(1, 24), label="width")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    epsilon = data.draw(st.sampled_from([1e-6, 1e-2, 1.0]), label="epsilon")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    offset = data.draw(st.sampled_from([0.0, 3.0]), label="offset")  # of all features: distances do not depend on it
    features = (rng.standard_normal((crops, tokens, width)) * 2 + offset).astype(dtype)
    first = rng.integers(0, tokens, crops).tolist()
    expected = [reference_trace(crop, start, keep, epsilon) for crop, start in zip(features, first, strict=True)]
    assume(all(margin > 1e-5 for _, margin in expected))
    assert select(features, first, keep, epsilon) == [chosen for chosen, _ in expected]


@fuzz
@given(st.data())
def test_candidates_of_each_crop(select: Select, data: st.DataObject) -> None:
    """Every crop chooses as if its candidates were all there is, for as long as it has some; other crops do not matter."""
    tokens, width = data.draw(st.integers(1, 24), label="N"), data.draw(st.integers(1, 12), label="width")
    crops = data.draw(st.integers(1, 5), label="crops")
    counts = data.draw(st.lists(st.integers(0, tokens), min_size=crops, max_size=crops), label="candidates")
    keep = data.draw(st.integers(1, tokens), label="steps")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    features = (rng.standard_normal((crops, tokens, width)) * 2).astype(dtype)
    candidates = np.array([rng.permutation(np.arange(tokens) < count) for count in counts])
    # What is no candidate lies far from everything: repulsion would take it next.
    features = np.where(candidates[..., None], features, features * 6 + 20).astype(dtype)
    first = [int(rng.choice(np.flatnonzero(mask))) if mask.any() else 0 for mask in candidates]
    chosen = select(features, first, keep, 1e-2, candidates)
    for crop, start, mask, count, found in zip(features, first, candidates, counts, chosen, strict=True):
        quota = min(keep, count)
        assert len(set(found[:quota])) == quota and mask[found[:quota]].all()
        assert all(0 <= row < tokens for row in found)
        if quota:
            expected, clear = reference_trace(crop, start, quota, 1e-2, mask)
            assume(clear > 1e-4)
            assert found[:quota] == expected


def test_only_the_shape_of_the_quota_is_read(select: Select) -> None:
    """More steps only append choices; a crop whose quota is 0 chooses too, and the selector drops it."""
    features = np.random.default_rng(4).standard_normal((3, 12, 5)).astype(np.float32)
    nine = select(features, [1, 2, 3], 9)
    assert select(features, [1, 2, 3], 9, quota=np.zeros((3, 9), bool)) == nine
    assert select(features, [1, 2, 3], 4) == [chosen[:4] for chosen in nine]
    for crop in range(3):
        assert select(features[crop : crop + 1], [crop + 1], 9) == [nine[crop]]


@fuzz
@given(st.data())
def test_exact_ties_go_to_the_lowest_index(select: Select, data: st.DataObject) -> None:
    """Exact arithmetic: a power of two of tokens, squared distances of 0, 2 or 6 and epsilon 2, hence potentials that are
    sums of 1/2, 1/4 and 1/8.  Nearly every choice is a tie, many tokens are duplicates."""
    tokens = 2 ** data.draw(st.integers(0, 5), label="log2 N")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    kinds = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=tokens, max_size=tokens)
    crops = [data.draw(kinds, label="kinds") for _ in range(data.draw(st.integers(1, 2), label="crops"))]
    coarse, fine = np.eye(3, dtype=dtype), np.eye(9, dtype=dtype)
    features = np.stack([[np.concatenate([fine[3 * a + b], coarse[a], coarse[a]]) for a, b in crop] for crop in crops])
    masks = st.lists(st.booleans(), min_size=tokens, max_size=tokens).filter(any)
    candidates = np.array([data.draw(masks, label="candidates") for _ in crops])
    keep = data.draw(st.integers(1, int(candidates.sum(axis=1).min())), label="K")
    first = [data.draw(st.sampled_from(np.flatnonzero(mask).tolist()), label="first") for mask in candidates]
    expected = [
        reference_trace(crop, start, keep, 2.0, mask)[0] for crop, start, mask in zip(features, first, candidates, strict=True)
    ]
    assert select(features, first, keep, 2.0, candidates) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equal_tokens_come_last_and_in_order(select: Select, dtype: Any) -> None:
    """Duplicates of what was chosen repel each other most; among themselves the lowest index wins."""
    corners = np.array([[0, 0], [8, 0], [0, 8], [8, 8]], dtype)
    features = corners[[0, 1, 2, 3, 0, 1, 2, 3]]  # mean [4, 4]
    for keep in range(1, 9):
        assert select(features[None], [1], keep) == [reference_trace(features, 1, keep)[0]]
    assert set(select(features[None], [1], 4)[0]) == {0, 1, 2, 3}
    assert set(select(features[None], [5], 4)[0]) == {0, 2, 3, 5}


def test_all_tokens_equal(select: Select) -> None:
    """A black picture: no distance tells anything, every token is chosen once, the lowest first."""
    features = np.full((2, 9, 4), 0.5, np.float32)
    assert select(features, [0, 3], 4) == [[0, 1, 2, 3], [3, 0, 1, 2]]
    assert select(features, [8, 0], 9) == [[8, *range(8)], list(range(9))]
    candidates = np.tile(np.arange(9) % 2 == 1, (2, 1))
    assert select(features, [1, 5], 4, candidates=candidates) == [[1, 3, 5, 7], [5, 1, 3, 7]]


@pytest.mark.parametrize("seed", range(4))
def test_distances_never_turn_negative(select: Select, seed: int) -> None:
    """Rounding puts the distance of large duplicates on either side of 0; below it they would attract each other."""
    kinds = (np.random.default_rng(seed).standard_normal((16, 64)) * 100).astype(np.float32)
    chosen = select(np.tile(kinds, (2, 1))[None], [3], 32)[0]
    assert sorted(row % 16 for row in chosen[:16]) == sorted(row % 16 for row in chosen[16:]) == list(range(16))


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_one_token_and_all_tokens(select: Select, tokens: int) -> None:
    features = np.random.default_rng(tokens).standard_normal((3, tokens, 5)).astype(np.float32)
    first = [0, tokens - 1, tokens // 2]
    assert select(features, first, 1) == [[index] for index in first]
    assert [sorted(chosen) for chosen in select(features, first, tokens)] == [list(range(tokens))] * 3
    assert [chosen[0] for chosen in select(features, first, tokens)] == first


@pytest.mark.parametrize(("tokens", "keep", "width"), [(576, 96, 64), (576, 192, 1024), (1024, 37, 32)])
def test_real_sizes(select: Select, tokens: int, keep: int, width: int) -> None:
    """LLaVA-1.5's counts, on features with an offset as vision towers have, where a Gram matrix cancels."""
    rng = np.random.default_rng(tokens + keep)
    features = (rng.standard_normal((1, tokens, width)) + 2 * rng.standard_normal(width)).astype(np.float32)
    expected, margin = reference_trace(features[0], 11, keep)
    assert margin > 1e-7, "choose another seed: rounding decides here"
    assert select(features, [11], keep) == [expected]


def test_large_offset_does_not_cancel(select: Select) -> None:
    """Distances of 1 between points at 1000: a Gram matrix around the origin would lose them."""
    rng = np.random.default_rng(3)
    features = (rng.standard_normal((1, 64, 8)) + 1000).astype(np.float32)
    expected, margin = reference_trace(features[0], 0, 16)
    assert margin > CLEAR / 10
    assert select(features, [0], 16) == [expected]


@fuzz
@given(st.data())
def test_both_forms_choose_the_same(data: st.DataObject) -> None:
    """Also where only rounding decides, between duplicates and what is nearly one; unfused, so that products are the same."""
    tokens = data.draw(st.integers(1, 600), label="N")
    keep = data.draw(st.integers(1, min(tokens, 120)), label="K")
    crops, width = data.draw(st.integers(1, 3), label="crops"), data.draw(st.integers(1, 40), label="width")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    noise = data.draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), label="noise")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    kinds = rng.standard_normal((data.draw(st.integers(1, 12), label="kinds"), width)) * 3
    features = kinds[rng.integers(0, len(kinds), (crops, tokens))] + noise * rng.standard_normal((crops, tokens, width))
    candidates = rng.random((crops, tokens)) < 0.8
    candidates[:, 0] = True
    run = partial(choices, features.astype(dtype), [0] * crops, keep, EPSILON, candidates, optimized=False)
    assert run(by_row=False) == run(by_row=True)


def test_both_forms_choose_the_same_of_many() -> None:
    features = np.random.default_rng(1).standard_normal((1, 2880, 16)).astype(np.float32)
    run = partial(choices, features, [7], 200, optimized=False)
    assert run(by_row=False) == run(by_row=True)


def loop_bodies(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    for function in model.functions:
        for node in function.node:
            yield from (attribute.g for attribute in node.attribute if node.op_type == "Loop" and attribute.name == "body")


def steps_of(max_crops: int, max_rows: int) -> list[str]:
    """Operators of a step in a graph for so many rows."""
    features = TensorSpec("visual_features", ("crops", "rows", 8), "float32")
    sizes: dict[str, Any] = {"hidden_size": 8, "width": 8, "max_crops": max_crops, "max_rows": max_rows}
    model = selector([features], None, "float32", prefix="p", stage1=Repulsion().build, **sizes)
    (body,) = loop_bodies(ir.to_proto(model))
    return [node.op_type for node in body.node]


@pytest.mark.parametrize(("crops", "rows"), [(1, 1), (1, 576), (5, 576), (1, 4096)])
def test_a_step_is_three_operators(crops: int, rows: int) -> None:
    """On a GPU each is a launch or more, and there are K steps: nothing may come to them."""
    steps = steps_of(crops, rows)
    assert sorted(steps) == ["Add", "ArgMin", "Constant", "GatherND"]


@pytest.mark.parametrize(("crops", "rows"), [(1, 4097), (2, 4096), (1, 16384)])
def test_large_pictures_are_computed_by_row(crops: int, rows: int) -> None:
    steps = steps_of(crops, rows)
    assert {"Reciprocal", "ArgMin"} < set(steps)


def test_room_for_matrices() -> None:
    """At most one of 16384 rows, which is 1 GiB; three at once of those that are computed beforehand."""
    stage = Repulsion()
    assert stage.scratch_bytes(1, 16384) == 1 << 30
    assert stage.scratch_bytes(5, 576) == 3 * 5 * 576**2 * 4
    assert stage.scratch_bytes(1, 4096) == 3 << 26
