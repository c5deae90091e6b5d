"""Visual rows at random: the graph on ONNX Runtime against Python's whole numbers; fair, and repeatable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.pruning.stage2.random import Random
from tests.pruning.stage2.stage_calls import TEXT, VISUAL, Prompts, one_kinds, padded, random_prompts, survive, with_text

fuzz = settings(max_examples=100, deadline=None, derandomize=True)
STAGE = Random()
PRIME = 2**31 - 1


def key(seed: int, number: int) -> int:
    """Of the number-th visual row."""
    x = seed % (PRIME - 1) + 1
    for word in (2, 0, number):
        x = pow((x + word + 1) % PRIME, 5, PRIME)
    for _ in range(2):
        x = pow((x + 10368889) % PRIME, 5, PRIME)
    return x // 128


def expected(prompts: Prompts, keep: int) -> tuple[list[list[int]], list[int]]:
    kept_rows, last_rows = [], []
    for kinds, seed in zip(prompts.kinds, prompts.seeds.tolist(), strict=True):
        visual = np.flatnonzero(kinds == VISUAL).tolist()
        ranked = sorted(range(len(visual)), key=lambda number: (-key(seed, number), number))
        rows, last = with_text(kinds, [visual[number] for number in ranked[:keep]])
        kept_rows.append(rows)
        last_rows.append(last)
    return kept_rows, last_rows


@fuzz
@given(st.data())
def test_random_prompts(data: st.DataObject) -> None:
    visual, batch = data.draw(st.integers(1, 40), label="V"), data.draw(st.integers(1, 3), label="batch")
    keep = data.draw(st.integers(1, visual), label="K'")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="rng"))
    kinds = padded([one_kinds(rng, visual, int(rng.integers(0, 4)), int(rng.integers(0, 4)), 2) for _ in range(batch)])
    seeds = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=batch, max_size=batch), label="seeds")
    prompts = replace(random_prompts(rng, kinds), seeds=np.array(seeds, np.int64))
    assert survive(STAGE, prompts, keep) == expected(prompts, keep)


def test_the_place_of_the_picture_in_the_prompt_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    kinds = padded([[VISUAL] * 30 + [TEXT], [TEXT] * 4 + [VISUAL] * 15 + [TEXT] + [VISUAL] * 15 + [TEXT]])
    prompts = replace(random_prompts(rng, kinds), seeds=np.array([77, 77]))
    kept = [
        [row for row in rows if request[row] == VISUAL]
        for rows, request in zip(survive(STAGE, prompts, 9)[0], kinds, strict=True)
    ]
    assert [row + 4 + (row >= 15) for row in kept[0]] == kept[1]


def test_every_row_is_kept_about_as_often() -> None:
    """Over 2000 seeds each of 20 rows is kept 500 times but for chance: six standard deviations are 116."""
    kinds = padded([[VISUAL] * 20 + [TEXT]] * 2000)
    prompts = replace(random_prompts(np.random.default_rng(0), kinds), seeds=np.arange(2000))
    counts = np.bincount([row for rows in survive(STAGE, prompts, 5)[0] for row in rows], minlength=21)
    assert counts[20] == 2000 and (abs(counts[:20] - 500) < 116).all()


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_text_and_decode_keep_every_row(rows: int) -> None:
    prompts = random_prompts(np.random.default_rng(rows), padded([[TEXT] * rows, [TEXT] * max(1, rows - 1)]))
    assert survive(STAGE, prompts, 1) == ([list(range(rows))] * 2, [rows - 1, max(1, rows - 1) - 1])
