"""The two ONNX functions and the selector graph on ONNX Runtime against the reference's selections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.configs import Dtype, ProjectorConfig, VisionConfig
from sts_export.graphs.layers import DTYPES
from sts_export.graphs.model import OPSET, STS_DOMAIN, parameters
from sts_export.graphs.selection import last_token_topk, repulsion_select
from sts_export.graphs.selector import selector
from sts_export.pruning import Anchor
from sts_export.reference import last_token_scores, repulsion_trace
from sts_export.reference import last_token_topk as reference_topk
from sts_export.reference import repulsion_select as reference_select

torch.set_num_threads(1)
EPSILON = 1e-6
# A choice this clear (relative to the chosen value) is the same however float32 is rounded.
CLEAR = 1e-3

fuzz = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def wrapped(
    function: ir.Function, inputs: Sequence[tuple[str, str, Sequence[int | str]]], outputs: Sequence[str], **attributes: Any
) -> ort.InferenceSession:
    """A model of one call; inputs are (name, dtype, shape), outputs int64."""
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType[dtype]), shape=ir.Shape(shape)) for name, dtype, shape in inputs
    ]
    graph = ir.Graph(values, [], nodes=[], name="one_call", opset_imports={"": OPSET, STS_DOMAIN: 1})
    builder = GraphBuilder(graph)
    results = builder.op.call(function, *values, **attributes, _outputs=list(outputs))
    for name, result in zip(outputs, results if isinstance(results, (list, tuple)) else [results], strict=True):
        result.type = ir.TensorType(ir.DataType.INT64)
        builder.add_output(result, name)
    model = ir.Model(graph, ir_version=11)
    model.functions.update(builder.functions)
    return session(model)


# Stage 1


@cache
def repulsion_session(keep: int, dtype: str, epsilon: float) -> ort.InferenceSession:
    inputs = [("features", dtype, ["crops", "tokens", "width"]), ("first", "INT64", ["crops"])]
    return wrapped(repulsion_select(), inputs, ["kept_index"], keep=keep, epsilon=epsilon)


def select(features: NDArray[Any], first: Sequence[int], keep: int, epsilon: float = EPSILON) -> list[list[int]]:
    """sts::RepulsionSelect: features [crops, N, C] -> kept tokens per crop."""
    dtype = {"float32": "FLOAT", "float16": "FLOAT16"}[features.dtype.name]
    kept = repulsion_session(keep, dtype, epsilon).run(None, {"features": features, "first": np.array(first, np.int64)})[0]
    assert kept.dtype == np.int64 and kept.shape == (len(features), keep)
    return kept.tolist()


def reference_trace(features: NDArray[Any], first: int, keep: int, epsilon: float = EPSILON) -> tuple[list[int], float]:
    """The reference's kept tokens from a given first one, and its least clear choice."""
    saliency = torch.zeros(len(features))
    saliency[first] = 1
    trace = repulsion_trace(torch.from_numpy(features), keep, anchor="saliency", saliency=saliency, epsilon=epsilon)
    return sorted(trace.order.tolist()), float(trace.margins[1:].min()) if keep > 1 else float("inf")


@fuzz
@given(st.data())
def test_random_features(data: st.DataObject) -> None:
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
    assert select(features, first, keep, epsilon) == [kept for kept, _ in expected]


@fuzz
@given(st.data())
def test_exact_ties_go_to_the_lowest_index(data: st.DataObject) -> None:
    """Exact arithmetic: a power of two of tokens, squared distances of 0, 2 or 6 and epsilon 2, hence potentials that are
    sums of 1/2, 1/4 and 1/8.  Nearly every choice is a tie, many tokens are duplicates."""
    tokens = 2 ** data.draw(st.integers(0, 5), label="log2 N")
    keep = data.draw(st.integers(1, tokens), label="K")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    kinds = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=tokens, max_size=tokens)
    crops = [data.draw(kinds, label="kinds") for _ in range(data.draw(st.integers(1, 2), label="crops"))]
    coarse, fine = np.eye(3, dtype=dtype), np.eye(9, dtype=dtype)
    features = np.stack([[np.concatenate([fine[3 * a + b], coarse[a], coarse[a]]) for a, b in crop] for crop in crops])
    first = [data.draw(st.integers(0, tokens - 1), label="first") for _ in crops]
    expected = [reference_trace(crop, start, keep, 2.0)[0] for crop, start in zip(features, first, strict=True)]
    assert select(features, first, keep, 2.0) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equal_tokens_come_last_and_in_order(dtype: Any) -> None:
    """Duplicates of what was chosen repel each other most; among themselves the lowest index wins."""
    corners = np.array([[0, 0], [8, 0], [0, 8], [8, 8]], dtype)
    features = corners[[0, 1, 2, 3, 0, 1, 2, 3]]  # mean [4, 4]
    for keep in range(1, 9):
        expected = reference_trace(features, 1, keep)[0]
        assert select(features[None], [1], keep) == [expected]
    assert select(features[None], [1], 4) == [[0, 1, 2, 3]]
    assert select(features[None], [5], 4) == [[0, 2, 3, 5]]


def test_all_tokens_equal() -> None:
    """A black picture: no distance tells anything, every token is chosen once, the lowest first."""
    features = np.full((2, 9, 4), 0.5, np.float32)
    assert select(features, [0, 3], 4) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert select(features, [8, 0], 9) == [list(range(9))] * 2


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_one_token_and_all_tokens(tokens: int) -> None:
    features = np.random.default_rng(tokens).standard_normal((3, tokens, 5)).astype(np.float32)
    first = [0, tokens - 1, tokens // 2]
    assert select(features, first, 1) == [[index] for index in first]
    assert select(features, first, tokens) == [list(range(tokens))] * 3


@pytest.mark.parametrize(("tokens", "keep", "width"), [(576, 96, 64), (576, 192, 1024), (1024, 37, 32)])
def test_real_sizes(tokens: int, keep: int, width: int) -> None:
    """LLaVA-1.5's counts, on features with an offset as vision towers have, where a Gram matrix cancels."""
    rng = np.random.default_rng(tokens + keep)
    features = (rng.standard_normal((1, tokens, width)) + 2 * rng.standard_normal(width)).astype(np.float32)
    expected, margin = reference_trace(features[0], 11, keep)
    assert margin > 1e-7, "choose another seed: rounding decides here"
    assert select(features, [11], keep) == [expected]


def test_large_offset_does_not_cancel() -> None:
    """Distances of 1 between points at 1000: a Gram matrix around the origin would lose them."""
    rng = np.random.default_rng(3)
    features = (rng.standard_normal((1, 64, 8)) + 1000).astype(np.float32)
    expected, margin = reference_trace(features[0], 0, 16)
    assert margin > CLEAR / 10
    assert select(features, [0], 16) == [expected]


# The selector graph: anchor, selection, projection

VISION = VisionConfig(84, 14, 16, 32, 2, 1, 1e-5, "quick_gelu")
PROJECTOR = ProjectorConfig(16, 24, "gelu")


@cache
def selector_graph(keep: int, anchor: str, dtype: Dtype) -> tuple[ort.InferenceSession, dict[str, NDArray[Any]]]:
    model = selector(VISION, PROJECTOR, dtype, prefix="p", keep=keep, anchor=anchor, epsilon=EPSILON)
    rng = np.random.default_rng(5)
    weights = {}
    for parameter in parameters(model):
        data = rng.standard_normal([int(size) for size in parameter.shape]).astype(DTYPES[dtype].numpy()) * 0.3
        weights[parameter.name] = data.astype(DTYPES[dtype].numpy())
        parameter.const_value = ir.tensor(weights[parameter.name], name=parameter.name)
    return session(model), weights


def run_selector(
    features: NDArray[Any], keep: int, anchor: str, saliency: NDArray[np.float32] | None = None
) -> tuple[list[list[int]], NDArray[Any], NDArray[Any]]:
    """kept_index, visual_embeds, and what torch makes of the kept rows."""
    graph, weights = selector_graph(keep, anchor, features.dtype.name)
    feeds = {"visual_features": features}
    if saliency is not None:
        feeds["cls_attention"] = saliency
    kept, embeds = graph.run(["kept_index", "visual_embeds"], feeds)
    rows = torch.from_numpy(np.take_along_axis(features, kept[..., None], axis=1)).float()
    tensors = {name.removeprefix("p."): torch.from_numpy(weight).float() for name, weight in weights.items()}
    hidden = torch.nn.functional.gelu(rows @ tensors["linear_1.weight"].T + tensors["linear_1.bias"])
    projected = hidden @ tensors["linear_2.weight"].T + tensors["linear_2.bias"]
    return kept.tolist(), embeds, projected.numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("anchor", ["mean", "first", "saliency"])
@pytest.mark.parametrize("keep", [1, 9, 35])
def test_selector(keep: int, anchor: Anchor, dtype: Any) -> None:
    rng = np.random.default_rng(keep)
    features = (rng.standard_normal((5, 36, 16)) + 1).astype(dtype)
    saliency = rng.random((5, 36), np.float32) if anchor == "saliency" else None
    kept, embeds, projected = run_selector(features, keep, anchor, saliency)
    for index, crop in enumerate(features):
        given_saliency = None if saliency is None else torch.from_numpy(saliency[index])
        trace = repulsion_trace(torch.from_numpy(crop), keep, anchor=anchor, saliency=given_saliency)
        assert trace.margins.min() > 1e-6, "choose another seed: rounding decides here"
        assert kept[index] == sorted(trace.order.tolist())
        assert kept[index] == reference_select(torch.from_numpy(crop), keep, anchor=anchor, saliency=given_saliency).tolist()
    assert embeds.dtype == dtype
    np.testing.assert_allclose(embeds.astype(np.float32), projected, rtol=0, atol=1e-5 if dtype == np.float32 else 2e-2)


def test_selector_anchors_differ() -> None:
    """K = 1 shows the anchor itself."""
    features = np.zeros((1, 36, 16), np.float32)
    features[0, :, 0] = np.arange(36) - 3.0
    features[0, :, 1] = np.where(np.arange(36) == 20, 0, 1)
    saliency = np.zeros((1, 36), np.float32)
    saliency[0, [7, 30]] = 0.5  # a tie
    assert run_selector(features, 1, "mean")[0] == [[17]]  # 17 and 18 are equally close to 17.5
    assert run_selector(features, 1, "first")[0] == [[0]]
    assert run_selector(features, 1, "saliency", saliency)[0] == [[7]]


def test_selector_keeping_everything_is_the_projector() -> None:
    features = np.random.default_rng(0).standard_normal((2, 36, 16)).astype(np.float32)
    for anchor in ("mean", "first", "saliency"):  # needs no saliency then
        kept, embeds, projected = run_selector(features, 36, anchor)
        assert kept == [list(range(36))] * 2
        np.testing.assert_allclose(embeds, projected, atol=1e-5)


# Stage 2


@cache
def topk_session(keep: int, scale: float, dtype: str) -> ort.InferenceSession:
    inputs = [
        ("query", dtype, ["batch", "heads", "rows", "head_dim"]),
        ("key", dtype, ["batch", "kv_heads", "rows", "head_dim"]),
        ("attention_mask", "INT64", ["batch", "rows"]),
        ("visual_mask", "BOOL", ["batch", "rows"]),
        ("visual_embeds", dtype, ["batch", "visual", "hidden"]),
    ]
    return wrapped(last_token_topk(), inputs, ["kept_rows", "last_row"], keep=keep, scale=scale)


def survive(
    query: NDArray[Any], key: NDArray[Any], mask: NDArray[np.int64], visual: NDArray[np.bool_], keep: int, scale: float
) -> tuple[list[list[int]], list[int]]:
    """sts::LastTokenTopK: kept_rows and last_row per request."""
    embeds = np.zeros((len(mask), max(1, int(visual[0].sum())), 4), query.dtype)
    graph = topk_session(keep, scale, {"float32": "FLOAT", "float16": "FLOAT16"}[query.dtype.name])
    kept, last = graph.run(
        None, {"query": query, "key": key, "attention_mask": mask, "visual_mask": visual, "visual_embeds": embeds}
    )
    assert kept.dtype == last.dtype == np.int64
    return kept.tolist(), last.tolist()


def expected_rows(
    query: NDArray[Any], key: NDArray[Any], mask: NDArray[np.int64], visual: NDArray[np.bool_], keep: int, scale: float
) -> tuple[list[list[int]], list[int]]:
    """The same from the reference, one request after the other."""
    kept_rows, last_rows = [], []
    for q, k, real, seen in zip(*map(torch.from_numpy, (query, key, mask, visual)), strict=True):
        rows = (~seen).nonzero().flatten().tolist()
        if seen.any():
            chosen = reference_topk(q, k, seen, keep, real=real.bool(), scale=scale)
            rows += seen.nonzero().flatten()[chosen].tolist()
        kept_rows.append(sorted(rows))
        last_rows.append(kept_rows[-1].index(int(real.nonzero()[-1])))
    return kept_rows, last_rows


def margin(query: NDArray[Any], key: NDArray[Any], mask: Any, visual: Any, keep: int, scale: float) -> float:
    """The least relative gap between the last kept and the first dropped score over all requests."""
    gaps = [float("inf")]
    for q, k, real, seen in zip(*map(torch.from_numpy, (query, key, mask, visual)), strict=True):
        scores = last_token_scores(q, k, seen, real=real.bool(), scale=scale).sort(descending=True).values.tolist()
        if keep < len(scores):
            gaps.append((scores[keep - 1] - scores[keep]) / scores[keep - 1])
    return min(gaps)


@fuzz
@given(st.data())
def test_random_attention(data: st.DataObject) -> None:
    """Grouped heads, several requests of different lengths padded on the right, images anywhere before the last text."""
    kv_heads, group = data.draw(st.integers(1, 3), label="kv_heads"), data.draw(st.integers(1, 4), label="group")
    head_dim = 2 * data.draw(st.integers(1, 8), label="head_dim/2")
    batch, visual_count = data.draw(st.integers(1, 3), label="batch"), data.draw(st.integers(1, 20), label="V")
    keep = data.draw(st.integers(1, 24), label="K'")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    before = data.draw(st.lists(st.integers(0, 6), min_size=batch, max_size=batch), label="text before")
    after = data.draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch), label="text after")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    lengths = [b + visual_count + a for b, a in zip(before, after, strict=True)]
    rows = max(lengths) + data.draw(st.integers(0, 2), label="more padding")
    query = rng.standard_normal((batch, kv_heads * group, rows, head_dim)).astype(dtype)
    key = rng.standard_normal((batch, kv_heads, rows, head_dim)).astype(dtype)
    mask = (np.arange(rows) < np.array(lengths)[:, None]).astype(np.int64)
    visual = (np.arange(rows) >= np.array(before)[:, None]) & (np.arange(rows) < np.array(before)[:, None] + visual_count)
    scale = head_dim**-0.5
    assume(margin(query, key, mask, visual, keep, scale) > 1e-5)
    kept, last = survive(query, key, mask, visual, keep, scale)
    assert (kept, last) == expected_rows(query, key, mask, visual, keep, scale)
    assert all(len(row) == rows - visual_count + min(visual_count, keep) for row in kept)


def test_padding_is_not_attended_and_not_asked() -> None:
    """Padding rows with keys and queries that would turn everything over change nothing."""
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 4, 20, 8)).astype(np.float32), rng.standard_normal((2, 2, 20, 8)).astype(np.float32)
    lengths = np.array([14, 18])
    mask = (np.arange(20) < lengths[:, None]).astype(np.int64)
    visual = np.zeros((2, 20), bool)
    visual[:, 2:12] = True
    kept, last = survive(query, key, mask, visual, 4, 0.35)
    assert (kept, last) == expected_rows(query, key, mask, visual, 4, 0.35)
    assert last == [14 - 1 - 6, 18 - 1 - 6]
    query[mask[:, None, :].repeat(4, 1) == 0], key[mask[:, None, :].repeat(2, 1) == 0] = 50, -50
    assert survive(query, key, mask, visual, 4, 0.35) == (kept, last)
    alone = survive(query[:1, :, :14], key[:1, :, :14], mask[:1, :14], visual[:1, :14], 4, 0.35)
    assert alone == ([[row for row in kept[0] if row < 14]], last[:1])


def test_only_the_last_token_is_asked() -> None:
    rng = np.random.default_rng(2)
    query, key = rng.standard_normal((1, 2, 12, 4)).astype(np.float32), rng.standard_normal((1, 1, 12, 4)).astype(np.float32)
    mask, visual = np.ones((1, 12), np.int64), (np.arange(12) < 8)[None]
    kept = survive(query, key, mask, visual, 3, 0.5)
    query[:, :, :-1] = rng.standard_normal((1, 2, 11, 4))
    assert survive(query, key, mask, visual, 3, 0.5) == kept
    query[:, :, -1] *= -1
    assert survive(query, key, mask, visual, 3, 0.5) != kept


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("visual_count", [3, 9, 40, 200])
def test_ties_go_to_the_lowest_row(visual_count: int, dtype: Any) -> None:
    """Keys repeat, so that scores tie exactly; the best one lies at the end."""
    rows = visual_count + 5
    query = np.ones((1, 4, rows, 4), dtype)
    key = np.zeros((1, 2, rows, 4), dtype)
    key[:, :, 2::3] = 1  # every third token ties at the higher score
    mask, visual = np.ones((1, rows), np.int64), ((np.arange(rows) >= 2) & (np.arange(rows) < 2 + visual_count))[None]
    high = [row for row in range(2, 2 + visual_count) if row % 3 == 2]
    low = [row for row in range(2, 2 + visual_count) if row % 3 != 2]
    text = [0, 1, *range(2 + visual_count, rows)]
    for keep in (1, len(high), len(high) + 1, visual_count - 1):
        expected = sorted(text + (high + low)[:keep])
        assert survive(query, key, mask, visual, keep, 0.5) == ([expected], [len(expected) - 1])
        assert expected_rows(query, key, mask, visual, keep, 0.5)[0] == [expected]


@pytest.mark.parametrize("keep", [6, 7, 100])
def test_keeping_all_keeps_all(keep: int) -> None:
    rng = np.random.default_rng(keep)
    query, key = rng.standard_normal((2, 2, 9, 4)).astype(np.float32), rng.standard_normal((2, 2, 9, 4)).astype(np.float32)
    visual = np.tile((np.arange(9) >= 1) & (np.arange(9) < 7), (2, 1))
    mask = np.array([[1] * 9, [1] * 8 + [0]])
    assert survive(query, key, mask, visual, keep, 0.5) == ([list(range(9))] * 2, [8, 7])


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("keep", [1, 5])
def test_text_and_decode_keep_every_row(rows: int, keep: int) -> None:
    """No visual rows but one dummy embedding: a text prompt, or with one row a decode step."""
    rng = np.random.default_rng(rows)
    query = rng.standard_normal((2, 4, rows, 4)).astype(np.float32)
    key = rng.standard_normal((2, 2, rows, 4)).astype(np.float32)
    mask = np.ones((2, rows), np.int64)
    mask[1, max(1, rows - 1) :] = 0
    visual = np.zeros((2, rows), bool)
    assert survive(query, key, mask, visual, keep, 0.5) == ([list(range(rows))] * 2, [rows - 1, max(1, rows - 1) - 1])


def test_float16_scores_are_computed_in_float32() -> None:
    """Logits of up to 300 with gaps that float16 has not: the larger one wins, though it comes later."""
    query = np.full((1, 1, 4, 2), 15, np.float16)
    key = np.array([[[[10.0, 10.0], [10.0, 10.0078125], [0, 0], [0, 0]]]], np.float16)
    mask, visual = np.ones((1, 4), np.int64), np.array([[True, True, False, False]])
    assert np.float16(300) == np.float16(300.1)
    assert survive(query, key, mask, visual, 1, 1.0) == ([[1, 2, 3]], [2])


def test_heads_vote_with_probabilities() -> None:
    """The mean is over softmax rows: two heads that are fairly sure outvote one with an enormous logit."""
    query = np.zeros((1, 3, 3, 2), np.float32)
    query[0, :, 2] = [[60, 0], [0, 5], [0, 5]]
    key = np.array([[[[0, 1], [1, 0], [-9, -9]]]], np.float32)
    visual = np.array([[True, True, False]])
    assert survive(query, key, np.ones((1, 3), np.int64), visual, 1, 1.0)[0] == [[0, 2]]
    query[0, 1, 2] = [60, 0]
    assert survive(query, key, np.ones((1, 3), np.int64), visual, 1, 1.0)[0] == [[1, 2]]


def test_text_takes_its_share_of_the_softmax() -> None:
    """Two heads; the one that prefers visual row 1 spends nearly all its attention on text, so row 0 wins."""
    query = np.zeros((1, 2, 4, 3), np.float32)
    query[0, :, 3] = [[1, 0, 0], [0, 2, 9]]
    key = np.array([[[[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]]], np.float32)
    visual = np.array([[True, True, False, False]])
    assert survive(query, key, np.ones((1, 4), np.int64), visual, 1, 1.0)[0] == [[0, 2, 3]]
    # Without that text, row 1 would win.
    query[0, 1, 3, 2] = 0
    assert survive(query, key, np.ones((1, 4), np.int64), visual, 1, 1.0)[0] == [[1, 2, 3]]
