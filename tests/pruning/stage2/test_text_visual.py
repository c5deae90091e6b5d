"""Attention of the text behind the pictures: the graph on ONNX Runtime against float64 loops over rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sts_export.pruning.stage2.text_visual import TextVisual
from tests.pruning.stage2.stage_calls import (
    NEWLINE,
    PADDING,
    SCALE,
    TEXT,
    VISUAL,
    Array,
    Prompts,
    behind_pictures,
    one_kinds,
    padded,
    random_prompts,
    survive,
    with_text,
)

fuzz = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
STAGE = TextVisual()


def scores_of(kinds: Array, query: Array, key: Array) -> Array:
    """[rows] float64, rounded so that equal keys tie."""
    real = np.flatnonzero(kinds != PADDING)
    asked = behind_pictures(kinds) or [int(real[-1])]
    group = len(query) // len(key)
    mean = np.zeros(len(kinds))
    for head in range(len(query)):
        for row in asked:
            seen = real[real <= row]
            logits = np.array([np.dot(query[head, row].astype(float), key[head // group, k].astype(float)) for k in seen])
            weights = np.exp(SCALE * (logits - logits.max()))
            mean[seen] += weights / weights.sum() / len(query) / len(asked)
    return mean.round(12)


def expected(prompts: Prompts, keep: int) -> tuple[tuple[list[list[int]], list[int]], float]:
    """Surviving rows, and the least relative gap between a kept and a dropped score that are not equal."""
    kept_rows, last_rows, gap = [], [], float("inf")
    for kinds, query, key in zip(prompts.kinds, prompts.query, prompts.key, strict=True):
        scores = scores_of(kinds, query, key)
        ranked = sorted(np.flatnonzero(kinds == VISUAL).tolist(), key=lambda row: (-scores[row], row))
        if keep < len(ranked):
            kept, dropped = scores[ranked[keep - 1]], scores[ranked[keep]]
            gap = min(gap, (kept - dropped) / kept if kept > dropped else gap)
        rows, last = with_text(kinds, ranked[:keep])
        kept_rows.append(rows)
        last_rows.append(last)
    return (kept_rows, last_rows), gap


@fuzz
@given(st.data())
def test_random_prompts(data: st.DataObject) -> None:
    """Grouped heads, one and several pictures, newlines, padding, no text behind the picture, one visual row, K' = V, ties."""
    visual, batch = data.draw(st.integers(1, 12), label="V"), data.draw(st.integers(1, 3), label="batch")
    keep = data.draw(st.integers(1, visual), label="K'")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    shapes = [(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))) for _ in range(batch)]
    kinds = padded([one_kinds(rng, visual, *shape) for shape in shapes], data.draw(st.integers(0, 2), label="padding"))
    heads = {"kv_heads": data.draw(st.integers(1, 3)), "group": data.draw(st.integers(1, 3))}
    prompts = random_prompts(rng, kinds, dtype=data.draw(st.sampled_from([np.float32, np.float16])), **heads)
    if data.draw(st.booleans(), label="ties"):
        prompts.key[:] = prompts.key[:, :, rng.integers(0, 2, kinds.shape[1])]
    rows, gap = expected(prompts, keep)
    assume(gap > 1e-4)
    assert survive(STAGE, prompts, keep) == rows


def prompts_of(row: list[int], seed: int = 0) -> Prompts:
    return random_prompts(np.random.default_rng(seed), np.array([row]))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_text_and_decode_keep_every_row(rows: int) -> None:
    kinds = padded([[TEXT] * rows, [TEXT] * max(1, rows - 1)])
    prompts = random_prompts(np.random.default_rng(rows), kinds)
    assert survive(STAGE, prompts, 1) == ([list(range(rows))] * 2, [rows - 1, max(1, rows - 1) - 1])


def kept_after(prompts: Prompts, head_rows: dict[int, Any], keep: int = 2) -> list[int]:
    """Rows that survive where the queries of some rows are others."""
    query = prompts.query.copy()
    for row, values in head_rows.items():
        query[:, :, row] = values
    return survive(STAGE, replace(prompts, query=query), keep)[0][0]


def test_only_text_behind_the_last_picture_is_asked() -> None:
    """Neither the text before or between pictures nor a newline has a say."""
    row = [TEXT, TEXT, VISUAL, VISUAL, TEXT, VISUAL, VISUAL, VISUAL, NEWLINE, TEXT, TEXT]
    prompts = prompts_of(row)
    kept = kept_after(prompts, {})
    rng = np.random.default_rng(1)
    for silent in range(9):
        assert kept_after(prompts, {silent: 20 * rng.standard_normal((1, 4, 6))}) == kept
    for asked in (9, 10):
        answers = {tuple(kept_after(prompts, {asked: 20 * rng.standard_normal((1, 4, 6))})) for _ in range(8)}
        assert len(answers) > 1


def test_text_rows_count_alike() -> None:
    """Two rows that are sure of one visual row outvote the last, which is sure of another."""
    key, query = np.zeros((1, 1, 6, 6), np.float32), np.zeros((1, 1, 6, 6), np.float32)
    kinds = np.array([[TEXT, VISUAL, VISUAL, TEXT, TEXT, TEXT]])
    key[0, 0, 1, 0] = key[0, 0, 2, 1] = 30
    query[0, 0, 3, 0] = query[0, 0, 4, 0] = query[0, 0, 5, 1] = 30
    prompts = Prompts(kinds, query, key, np.zeros((1, 6, 12), np.float32), np.zeros(1, np.int64))
    assert survive(STAGE, prompts, 1)[0] == [[0, 1, 3, 4, 5]]
    prompts.query[0, 0, 4] = prompts.query[0, 0, 5]
    assert survive(STAGE, prompts, 1)[0] == [[0, 2, 3, 4, 5]]


def test_rows_attend_causally() -> None:
    """A key of later text that would take all attention takes none of an earlier row's."""
    prompts = prompts_of([VISUAL] * 6 + [TEXT] * 3, 4)
    prompts.query[:, :, 7:] = 0  # these attend to all alike
    before = survive(STAGE, prompts, 2)
    prompts.key[:, :, 8] = prompts.query[:, ::2, 6] * 50
    assert survive(STAGE, prompts, 2) == before


@pytest.mark.parametrize("behind", [1, 4])
def test_padding_changes_nothing(behind: int) -> None:
    prompts = prompts_of([TEXT, *[VISUAL] * 8, *[TEXT] * behind, *[PADDING] * 3], 5)
    rows = prompts.kinds.shape[1] - 3
    kept, last = survive(STAGE, prompts, 3)
    query, key = (values[:, :, :rows] for values in (prompts.query, prompts.key))
    short = Prompts(prompts.kinds[:, :rows], query, key, prompts.hidden[:, :rows], prompts.seeds)
    assert survive(STAGE, short, 3) == ([[row for row in kept[0] if row < rows]], last)
    prompts.query[:, :, rows:], prompts.key[:, :, rows:] = 50, -50
    assert survive(STAGE, prompts, 3) == (kept, last)


def test_float16_scores_are_computed_in_float32() -> None:
    """Products of up to 300 with gaps that float16 has not: the larger one wins, though it comes later."""
    query, key = np.zeros((1, 1, 3, 6), np.float16), np.zeros((1, 1, 3, 6), np.float16)
    query[0, 0, 2, :2] = 15
    key[0, 0, 0, :2], key[0, 0, 1, :2] = [10, 10], [10, 10.0078125]
    prompts = Prompts(np.array([[VISUAL, VISUAL, TEXT]]), query, key, np.zeros((1, 3, 12), np.float16), np.zeros(1, np.int64))
    assert survive(STAGE, prompts, 1)[0] == [[1, 2]]


def test_needs() -> None:
    assert STAGE.needs == {"own_query_key", "text_rows"}
    assert TextVisual(score_layer="next").needs == {"next_query_key", "text_rows"}
