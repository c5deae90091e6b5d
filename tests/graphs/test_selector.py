"""The selector graph on ONNX Runtime: anchors, crops with quotas, reading order and projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.graphs.configs import Dtype, ProjectorConfig
from sts_export.graphs.selector import selector
from sts_export.graphs.stages import Stage1Choice, Stage1Inputs
from sts_export.graphs.towers.clip_contract import ClipVisionConfig, clip_encoder_contract
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract
from sts_export.pruning.stage1.repulsion import Anchor, Repulsion
from sts_export.reference import repulsion_select, repulsion_trace
from tests.graphs.onnx_models import bind, random_weights, session

torch.set_num_threads(1)
EPSILON = 1e-6
ROWS, WIDTH, HIDDEN = 36, 16, 24
SIZES: dict[str, Any] = {"max_crops": 5, "max_rows": 90}
CLIP = ClipVisionConfig(84, 14, WIDTH, 32, 2, 1, 1e-5, "quick_gelu")
QWEN = QwenVisionConfig(14, 2, 2, 8, 32, 32, 2, 2, (1,), WIDTH, "silu", 64)
ANCHORS: tuple[Anchor, ...] = ("mean", "first", "saliency")

fuzz = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


@dataclass(frozen=True)
class Selected:
    """What the graph gave: positions in token_order, and their rows, of which the first K count."""

    kept: list[int]
    embeds: NDArray[Any]
    total: int


@cache
def graph(anchor: Anchor, dtype: Dtype, keep_all: bool, merged: bool) -> tuple[ort.InferenceSession, dict[str, NDArray[Any]]]:
    """``merged``: the tower of Qwen2.5-VL, whose features are the embeddings already."""
    projector = None if merged else ProjectorConfig(WIDTH, HIDDEN, "gelu")
    stage1 = Repulsion(anchor, EPSILON)
    needs = frozenset({"cls_attention"}) if anchor == "saliency" and not keep_all else frozenset()
    encoder = qwen_encoder_contract(QWEN, dtype) if merged else clip_encoder_contract(CLIP, dtype, needs)
    model = selector(
        encoder.outputs,
        projector,
        dtype,
        hidden_size=WIDTH if merged else HIDDEN,
        width=WIDTH,
        prefix="p",
        stage1=None if keep_all else stage1.build,
        **SIZES,
    )
    weights = random_weights(model)
    bind(model, weights)
    return session(model), weights


def run(
    features: NDArray[Any],
    token_order: Sequence[int],
    shares: Sequence[int],
    anchor: Anchor,
    saliency: NDArray[np.float32] | None = None,
    *,
    steps: int | None = None,
    keep_all: bool = False,
) -> Selected:
    """Run the graph and check what holds whatever is chosen; ``shares``: K of each crop."""
    merged = features.shape[0] == 1 and features.shape[1] != ROWS
    encoder, weights = graph(anchor, features.dtype.name, keep_all, merged)
    order = np.array(token_order, np.int64)
    quota = np.arange(max(shares) if steps is None else steps) < np.array(shares)[:, None]
    feeds = {"visual_features": features, "token_order": order, "quota": quota}
    if saliency is not None and not keep_all:
        feeds["cls_attention"] = saliency
    kept, embeds = encoder.run(["kept_index", "visual_embeds"], feeds)
    assert kept.dtype == np.int64 and kept.shape == (min(quota.size, len(order)),)
    assert len(set(kept.tolist())) == len(kept) and set(kept.tolist()) <= set(range(len(order)))
    assert embeds.dtype == features.dtype
    tolerance = 1e-5 if features.dtype == np.float32 else 2e-2
    expected = projected(features.reshape(-1, WIDTH)[order[kept]], weights)
    np.testing.assert_allclose(embeds.astype(np.float32), expected, rtol=0, atol=tolerance)
    return Selected(kept.tolist(), embeds, int(quota.sum()))


def projected(rows: NDArray[Any], weights: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """LLaVA's projector in float32; without weights, nothing."""
    if not weights:
        return rows.astype(np.float32)
    tensors = {name.removeprefix("p."): torch.from_numpy(weight) for name, weight in weights.items()}
    hidden = torch.from_numpy(rows).float() @ tensors["linear_1.weight"].T + tensors["linear_1.bias"]
    result = torch.nn.functional.gelu(hidden) @ tensors["linear_2.weight"].T + tensors["linear_2.bias"]
    return np.asarray(result.numpy())


def expected_tokens(
    features: NDArray[Any],
    token_order: Sequence[int],
    shares: Sequence[int],
    anchor: Anchor,
    saliency: NDArray[np.float32] | None = None,
) -> tuple[list[int], float]:
    """Crop after crop, the reference on its candidates in raster order: kept positions, ascending, and the least margin."""
    position = {row: place for place, row in enumerate(token_order)}
    kept, clear = [], float("inf")
    for crop, share in enumerate(shares):
        if share == 0:
            continue
        rows = np.array(sorted(row % features.shape[1] for row in token_order if row // features.shape[1] == crop))
        own = None if saliency is None else torch.from_numpy(saliency[crop, rows])
        trace = repulsion_trace(torch.from_numpy(features[crop, rows]), share, anchor=anchor, saliency=own)
        clear = min(clear, float(trace.margins.min()))
        kept += [position[crop * features.shape[1] + int(row)] for row in rows[trace.order.numpy()]]
    return sorted(kept), clear


def random_saliency(anchor: Anchor, crops: int, rng: np.random.Generator) -> NDArray[np.float32] | None:
    return rng.random((crops, ROWS), np.float32) if anchor == "saliency" else None


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("keep", [1, 9, 35, 36])
def test_one_crop(keep: int, anchor: Anchor, dtype: Any) -> None:
    """LLaVA-1.5: every row is a token and they stand in order."""
    rng = np.random.default_rng(keep)
    for _ in range(4):
        features = (rng.standard_normal((1, ROWS, WIDTH)) + 1).astype(dtype)
        saliency = random_saliency(anchor, 1, rng)
        selected = run(features, range(ROWS), [keep], anchor, saliency)
        own = None if saliency is None else torch.from_numpy(saliency[0])
        trace = repulsion_trace(torch.from_numpy(features[0]), keep, anchor=anchor, saliency=own)
        assert trace.margins.min() > 1e-6, "choose another seed: rounding decides here"
        assert selected.kept == sorted(trace.order.tolist())
        assert selected.kept == repulsion_select(torch.from_numpy(features[0]), keep, anchor=anchor, saliency=own).tolist()


@fuzz
@given(st.data())
def test_crops_with_quotas_and_unread_rows(data: st.DataObject) -> None:
    """LLaVA-NeXT: rows in any reading order, some of them in none, and a share for every crop, perhaps 0."""
    crops = data.draw(st.integers(1, 5), label="crops")
    anchor = data.draw(st.sampled_from(ANCHORS), label="anchor")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    counts = data.draw(st.lists(st.integers(0, ROWS), min_size=crops, max_size=crops).filter(any), label="candidates")
    shares = [data.draw(st.integers(0, min(count, 12)), label="K") for count in counts]
    assume(any(shares))
    more_steps = data.draw(st.integers(0, 2), label="steps nobody uses")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    features = (rng.standard_normal((crops, ROWS, WIDTH)) * 2).astype(dtype)
    read = [crop * ROWS + int(row) for crop, count in enumerate(counts) for row in rng.permutation(ROWS)[:count]]
    token_order = rng.permutation(read).tolist()
    unread = np.setdiff1d(np.arange(crops * ROWS), token_order)
    features.reshape(-1, WIDTH)[unread] += 30  # the mean and the repulsion must not see them
    saliency = random_saliency(anchor, crops, rng)
    if saliency is not None:
        saliency.reshape(-1)[unread] += 1
    expected, clear = expected_tokens(features, token_order, shares, anchor, saliency)
    assume(clear > 1e-4)
    selected = run(features, token_order, shares, anchor, saliency, steps=max(shares) + more_steps)
    assert selected.kept[: selected.total] == expected


@fuzz
@given(st.data())
def test_any_number_of_tokens(data: st.DataObject) -> None:
    """Qwen2.5-VL: one crop of N rows, and its features are the embeddings."""
    tokens = data.draw(st.integers(1, 90).filter(lambda count: count != ROWS), label="N")
    keep = data.draw(st.integers(1, tokens), label="K")
    anchor = data.draw(st.sampled_from(ANCHORS[:2]), label="anchor")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    features = rng.standard_normal((1, tokens, WIDTH)).astype(np.float32)
    expected, clear = expected_tokens(features, range(tokens), [keep], anchor)
    assume(clear > 1e-5)
    selected = run(features, range(tokens), [keep], anchor)
    assert selected.kept == expected
    np.testing.assert_array_equal(selected.embeds, features[0, expected])


def test_the_reading_order_does_not_change_the_choice() -> None:
    rng = np.random.default_rng(8)
    features = rng.standard_normal((3, ROWS, WIDTH)).astype(np.float32)
    shares, rows = [5, 0, 12], np.arange(3 * ROWS)
    chosen = run(features, rows.tolist(), shares, "mean").kept[:17]
    for _ in range(5):
        order = rng.permutation(rows)
        kept = run(features, order.tolist(), shares, "mean").kept[:17]
        assert kept == sorted(kept) and sorted(order[kept].tolist()) == chosen


def test_a_crop_may_have_no_token_and_no_quota() -> None:
    """Unpadding can cut a tile away; what it holds then, even infinities, reaches nothing."""
    rng = np.random.default_rng(9)
    features = rng.standard_normal((3, ROWS, WIDTH)).astype(np.float32)
    order = [*range(ROWS), *range(2 * ROWS, 3 * ROWS)]
    saliency = rng.random((3, ROWS), np.float32)
    for anchor in ANCHORS:
        given_saliency = saliency if anchor == "saliency" else None
        expected, _ = expected_tokens(features, order, [4, 0, 3], anchor, given_saliency)
        for filling in (0.0, 1e4, np.inf, np.nan):
            features[1] = filling
            assert run(features, order, [4, 0, 3], anchor, given_saliency).kept[:7] == expected


def test_anchors_differ() -> None:
    """K = 1 shows the anchor itself."""
    features = np.zeros((1, ROWS, WIDTH), np.float32)
    features[0, :, 0] = np.arange(ROWS) - 3.0
    features[0, :, 1] = np.where(np.arange(ROWS) == 20, 0, 1)
    saliency = np.zeros((1, ROWS), np.float32)
    saliency[0, [7, 30]] = 0.5  # a tie
    order = list(range(ROWS))
    assert run(features, order, [1], "mean").kept == [17]  # 17 and 18 are equally close to 17.5
    assert run(features, order, [1], "first").kept == [0]
    assert run(features, order, [1], "saliency", saliency).kept == [7]
    # Among the rows that are read only: their mean is 30, their first one is 25, and 30 is salient alone.
    order = list(range(ROWS - 1, 24, -1))
    assert [order[index] for index in run(features, order, [1], "mean").kept] == [30]
    assert [order[index] for index in run(features, order, [1], "first").kept] == [25]
    assert [order[index] for index in run(features, order, [1], "saliency", saliency).kept] == [30]


def test_equal_rows() -> None:
    """Black pictures: the lowest row of each crop's candidates first, wherever it stands in the reading order."""
    features = np.full((2, ROWS, WIDTH), 0.5, np.float32)
    order = [*range(ROWS + 35, ROWS + 9, -1), *range(ROWS)]  # 26 rows of the second crop, backwards
    kept = run(features, order, [2, 3], "mean").kept[:5]
    assert sorted(order[index] for index in kept) == [0, 1, ROWS + 10, ROWS + 11, ROWS + 12]


@pytest.mark.parametrize("anchor", ANCHORS)
def test_one_token_in_one_row(anchor: Anchor) -> None:
    features = np.random.default_rng(0).standard_normal((2, ROWS, WIDTH)).astype(np.float32)
    saliency = np.ones((2, ROWS), np.float32) if anchor == "saliency" else None
    assert run(features, [ROWS + 21], [0, 1], anchor, saliency).kept == [0]


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("keep_all", [False, True])
def test_keeping_everything_is_reordering_and_projecting(anchor: Anchor, keep_all: bool) -> None:
    """K = N, by selection (a smaller image of the same bundle) and without one."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((3, ROWS, WIDTH)).astype(np.float32)
    order = rng.permutation(3 * ROWS)[:70].tolist()
    shares = np.bincount(np.array(order) // ROWS, minlength=3).tolist()
    saliency = random_saliency(anchor, 3, rng)
    assert run(features, order, shares, anchor, saliency, keep_all=keep_all).kept == list(range(70))
    merged = rng.standard_normal((1, 50, WIDTH)).astype(np.float32)
    if anchor != "saliency":
        assert run(merged, range(50), [50], anchor, keep_all=keep_all).kept == list(range(50))


def test_keeping_everything_has_no_selection() -> None:
    encoder, _ = graph("saliency", "float32", True, False)
    assert [item.name for item in encoder.get_inputs()] == ["visual_features", "token_order", "quota"]


def test_a_stage_may_merge_what_it_drops() -> None:
    """Features that a stage gives in place of the tower's are what is projected; which rows are kept stays its choice."""

    def first_rows(op: Any, inputs: Stage1Inputs) -> Stage1Choice:
        assert set(inputs.tower) == set()
        crops_steps = op.Shape(inputs.quota)
        steps = op.Squeeze(op.Shape(inputs.quota, start=1, end=2))
        row = op.Range(op.Constant(value_int=0), steps, op.Constant(value_int=1))
        mean = op.ReduceMean(inputs.features, op.Constant(value_ints=[1]), keepdims=1)
        return Stage1Choice(op.Expand(row, crops_steps), op.Add(inputs.features, mean))

    outputs = clip_encoder_contract(CLIP, "float32", frozenset()).outputs
    model = selector(outputs, None, "float32", hidden_size=WIDTH, width=WIDTH, prefix="p", stage1=first_rows, **SIZES)
    features = np.random.default_rng(5).standard_normal((2, ROWS, WIDTH)).astype(np.float32)
    quota = np.arange(4) < np.array([[4], [3]])
    feeds = {"visual_features": features, "token_order": np.arange(2 * ROWS), "quota": quota}
    kept, embeds = session(model).run(["kept_index", "visual_embeds"], feeds)
    assert kept[:7].tolist() == [0, 1, 2, 3, ROWS, ROWS + 1, ROWS + 2]
    merged = features + features.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(embeds[:7], merged.reshape(-1, WIDTH)[kept[:7]], rtol=0, atol=1e-5)


def test_a_stage_is_given_what_it_needs_of_the_tower() -> None:
    seen: list[set[str]] = []

    def looks(op: Any, inputs: Stage1Inputs) -> Stage1Choice:
        seen.append(set(inputs.tower))
        return Repulsion("saliency").build(op, inputs)

    outputs = clip_encoder_contract(CLIP, "float32", Repulsion("saliency").needs).outputs
    model = selector(outputs, None, "float32", hidden_size=WIDTH, width=WIDTH, prefix="p", stage1=looks, **SIZES)
    assert seen == [{"cls_attention"}]
    assert [value.name for value in model.graph.inputs] == ["visual_features", "cls_attention", "token_order", "quota"]
