"""sts::LastTokenTopK on ONNX Runtime against the reference's selection."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.pruning.stage2.last_token import last_token_topk
from sts_export.reference import last_token_scores
from sts_export.reference import last_token_topk as reference_topk
from tests.graphs.onnx_models import TYPES, one_call

torch.set_num_threads(1)

fuzz = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])


@cache
def topk_session(scale: float, dtype: str) -> ort.InferenceSession:
    inputs = [
        ("query", dtype, ["batch", "heads", "rows", "head_dim"]),
        ("key", dtype, ["batch", "kv_heads", "rows", "head_dim"]),
        ("attention_mask", "INT64", ["batch", "rows"]),
        ("visual_mask", "BOOL", ["batch", "rows"]),
        ("visual_embeds", dtype, ["batch", "visual", "hidden"]),
        ("stage2_slots", "INT64", ["visual_keep"]),
    ]
    return one_call(last_token_topk(), inputs, ["kept_rows", "last_row"], scale=scale)


def survive(
    query: NDArray[Any], key: NDArray[Any], mask: NDArray[np.int64], visual: NDArray[np.bool_], keep: int, scale: float
) -> tuple[list[list[int]], list[int]]:
    """sts::LastTokenTopK: kept_rows and last_row per request."""
    feeds = {
        "query": query,
        "key": key,
        "attention_mask": mask,
        "visual_mask": visual,
        "visual_embeds": np.zeros((len(mask), max(1, int(visual[0].sum())), 4), query.dtype),
        "stage2_slots": np.full(keep, -7, np.int64),
    }
    kept, last = topk_session(scale, TYPES[query.dtype.name]).run(None, feeds)
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
    """Grouped heads, several requests of different lengths padded on the right, visual rows anywhere before the last text."""
    kv_heads, group = data.draw(st.integers(1, 3), label="kv_heads"), data.draw(st.integers(1, 4), label="group")
    head_dim = 2 * data.draw(st.integers(1, 8), label="head_dim/2")
    batch, visual_count = data.draw(st.integers(1, 3), label="batch"), data.draw(st.integers(1, 20), label="V")
    keep = data.draw(st.integers(1, visual_count), label="K'")
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    before = data.draw(st.lists(st.integers(0, 6), min_size=batch, max_size=batch), label="text before")
    after = data.draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch), label="text after")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    lengths = [b + visual_count + a for b, a in zip(before, after, strict=True)]
    rows = max(lengths) + data.draw(st.integers(0, 2), label="more padding")
    query = rng.standard_normal((batch, kv_heads * group, rows, head_dim)).astype(dtype)
    key = rng.standard_normal((batch, kv_heads, rows, head_dim)).astype(dtype)
    mask = (np.arange(rows) < np.array(lengths)[:, None]).astype(np.int64)
    visual = np.zeros((batch, rows), bool)
    for index, text in enumerate(before):  # newline rows and second images leave gaps
        visual[index, rng.choice(text + visual_count, visual_count, replace=False)] = True
    scale = head_dim**-0.5
    assume(margin(query, key, mask, visual, keep, scale) > 1e-5)
    kept, last = survive(query, key, mask, visual, keep, scale)
    assert (kept, last) == expected_rows(query, key, mask, visual, keep, scale)
    assert all(len(row) == rows - visual_count + keep for row in kept)


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


def test_keeping_all_keeps_all() -> None:
    rng = np.random.default_rng(6)
    query, key = rng.standard_normal((2, 2, 9, 4)).astype(np.float32), rng.standard_normal((2, 2, 9, 4)).astype(np.float32)
    visual = np.tile((np.arange(9) >= 1) & (np.arange(9) < 7), (2, 1))
    mask = np.array([[1] * 9, [1] * 8 + [0]])
    assert survive(query, key, mask, visual, 6, 0.5) == ([list(range(9))] * 2, [8, 7])


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_text_and_decode_keep_every_row(rows: int) -> None:
    """No visual rows but one dummy embedding: a text prompt, or with one row a decode step."""
    rng = np.random.default_rng(rows)
    query = rng.standard_normal((2, 4, rows, 4)).astype(np.float32)
    key = rng.standard_normal((2, 2, rows, 4)).astype(np.float32)
    mask = np.ones((2, rows), np.int64)
    mask[1, max(1, rows - 1) :] = 0
    visual = np.zeros((2, rows), bool)
    assert survive(query, key, mask, visual, 1, 0.5) == ([list(range(rows))] * 2, [rows - 1, max(1, rows - 1) - 1])


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
