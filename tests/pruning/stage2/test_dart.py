"""Dissimilarity to pivots: the graph on ONNX Runtime against a float64 loop over pivots, and how many rows each takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sts_export.pruning.stage2.dart import Dart
from tests.pruning.stage2.stage_calls import (
    NEWLINE,
    PADDING,
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

fuzz = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
STAGE = Dart()


class Gaps:
    """The least gap between numbers that are compared and not equal."""

    def __init__(self) -> None:
        self.least = float("inf")

    def __call__(self, numbers: list[float]) -> None:
        ordered = np.diff(sorted(numbers))
        self.least = min([self.least, *ordered[ordered > 0].tolist()])


def chosen(kinds: Array, key: Array, hidden: Array, keep: int, gaps: Gaps) -> list[int]:
    """The K' visual rows of one request."""
    importance = np.array([np.abs(key[:, row].astype(float)).sum() for row in range(len(kinds))]).round(9)
    x = hidden.astype(float)
    visual = np.flatnonzero(kinds == VISUAL).tolist()

    def most_important(rows: list[int]) -> list[int]:
        gaps([importance[row] for row in rows])
        return sorted(rows, key=lambda row: (-importance[row], row))[:4]

    of_picture, of_text = most_important(visual), most_important(behind_pictures(kinds))
    kept = of_picture[:keep]
    pivots = sorted(of_picture + of_text)
    share = keep // 8 if len(pivots) == 8 else keep // len(pivots)
    missing = max(0, keep - len(of_picture) - len(pivots) * share)
    for number, pivot in enumerate(pivots):
        count = share + missing // len(pivots) + (number < missing % len(pivots))
        free = [row for row in visual if row not in kept]
        norms = [max(float(np.sqrt((x[row] ** 2).sum())), 1e-12) for row in range(len(x))]
        cosine = {row: round(float((x[row] * x[pivot]).sum()) / norms[row] / norms[pivot], 9) for row in free}
        gaps(list(cosine.values()))
        kept += sorted(free, key=lambda row: (cosine[row], row))[: min(count, keep - len(kept))]
    assert len(kept) == keep == len(set(kept))
    return kept


def expected(prompts: Prompts, keep: int) -> tuple[tuple[list[list[int]], list[int]], float]:
    gaps = Gaps()
    rows = [
        with_text(kinds, chosen(kinds, key, hidden, keep, gaps))
        for kinds, key, hidden in zip(prompts.kinds, prompts.key, prompts.hidden, strict=True)
    ]
    return ([kept for kept, _ in rows], [last for _, last in rows]), gaps.least


@fuzz
@given(st.data())
def test_random_prompts(data: st.DataObject) -> None:
    """One and several pictures, newlines, padding, little or no text behind the picture, few visual rows, K' = V, ties."""
    visual, batch = data.draw(st.integers(1, 24), label="V"), data.draw(st.integers(1, 2), label="batch")
    keep = data.draw(st.integers(1, visual), label="K'")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    shapes = [(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 6)), data.draw(st.integers(1, 3))) for _ in range(batch)]
    kinds = padded([one_kinds(rng, visual, *shape) for shape in shapes], data.draw(st.integers(0, 2), label="padding"))
    prompts = random_prompts(rng, kinds, dtype=data.draw(st.sampled_from([np.float32, np.float16])))
    if data.draw(st.booleans(), label="ties"):
        same = rng.integers(0, 4, kinds.shape[1])
        prompts.key[:], prompts.hidden[:] = prompts.key[:, :, same], prompts.hidden[:, same]
    rows, gap = expected(prompts, keep)
    assume(gap > 1e-6)
    assert survive(STAGE, prompts, keep) == rows


@pytest.mark.parametrize(("visual", "behind"), [(70, 6), (40, 3), (9, 2), (6, 4), (5, 0), (3, 5), (1, 1), (1, 0)])
def test_every_count_is_kept_exactly(visual: int, behind: int) -> None:
    """K' from 1 to V with eight pivots and with fewer."""
    prompts = random_prompts(np.random.default_rng(visual), padded([[TEXT, *[VISUAL] * visual, *[TEXT] * behind]]))
    for keep in range(1, visual + 1):
        rows, gap = expected(prompts, keep)
        assert gap > 1e-7, "choose another seed: rounding decides here"
        assert survive(STAGE, prompts, keep) == rows
        assert len(rows[0][0]) == 1 + behind + keep


def by_hand(visual: int, text: int) -> Prompts:
    """Rows 0-3 and the text are the pivots; text row t is unlike the visual rows 4 + t, 4 + text + t, ... and no others."""
    rows = visual + text
    key, hidden = np.ones((1, 1, rows, 6), np.float32), np.zeros((1, rows, 40), np.float32)
    key[0, 0, :4] = 2  # more important
    for place in range(4):
        hidden[0, place, place] = 1  # orthogonal to all: ties, so that the lowest are taken
    for place in range(text):
        hidden[0, visual + place, 10 + place] = 1
        hidden[0, 4 + place : visual : text, 10 + place] = -1
    kinds = np.array([[VISUAL] * visual + [TEXT] * text])
    return Prompts(kinds, key, key, hidden, np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("keep", "visual_rows"),
    [
        (3, [0, 1, 2]),  # fewer than visual pivots
        (4, [0, 1, 2, 3]),
        # 7 // 8 = 0 each: three are missing, which the first three pivots take.
        (7, [0, 1, 2, 3, 4, 5, 6]),
        # One each: rows 4-7 for the visual pivots, then eight are kept.
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        # 9 // 8 = 1 each: rows 4-7, and the first text pivot takes row 8, which is unlike it; nothing is left for the others.
        (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        # Two each: rows 4-11; the text pivots 0 and 1 take what is unlike them: 12 and 16, 13 and 17; four less than 20 left.
        (16, [0, 1, 2, 3, *range(4, 12), 12, 13, 16, 17]),
    ],
)
def test_shares_by_hand(keep: int, visual_rows: list[int]) -> None:
    assert survive(STAGE, by_hand(24, 4), keep)[0] == [[*visual_rows, 24, 25, 26, 27]]


def test_only_text_behind_the_last_picture_can_be_a_pivot() -> None:
    """Enormous keys elsewhere, newlines and padding included, change nothing."""
    row = [TEXT, VISUAL, VISUAL, TEXT, *[VISUAL] * 9, NEWLINE, *[TEXT] * 3, PADDING]
    prompts = random_prompts(np.random.default_rng(3), np.array([row]))
    before = survive(STAGE, prompts, 7)
    for silent in (0, 3, 13, 17):
        prompts.key[:, :, silent] = 99
        assert survive(STAGE, prompts, 7) == before
    prompts.hidden[:, [0, 3, 13, 17]] = -9
    assert survive(STAGE, prompts, 7) == before


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_text_and_decode_keep_every_row(rows: int) -> None:
    kinds = padded([[TEXT] * rows, [TEXT] * max(1, rows - 1)])
    prompts = random_prompts(np.random.default_rng(rows), kinds)
    assert survive(STAGE, prompts, 1) == ([list(range(rows))] * 2, [rows - 1, max(1, rows - 1) - 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_of_zeros_and_large_rows_have_cosines(dtype: Any) -> None:
    """No division by zero, and no overflow of squares in float16."""
    prompts = random_prompts(np.random.default_rng(8), np.array([[*[VISUAL] * 12, *[TEXT] * 4]]), dtype=dtype)
    prompts.hidden[:, 3:6] = 0
    prompts.hidden[:, 8] *= 1000
    rows, gap = expected(prompts, 8)
    assert gap > 1e-6 and survive(STAGE, prompts, 8) == rows
