"""Attention of the text behind the last picture against torch's own softmax, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sts_export.reference import find_stage2
from tests.reference.pruning.stage2.prefills import prefill_of

STAGE: Any = find_stage2("text-visual")


@pytest.mark.parametrize("kinds, rows", [("tvvtvvnttt", [7, 8, 9]), ("vvvvt", [4]), ("tvvvn", [4]), ("tvvvv", [4])])
def test_rows_behind_the_last_picture(kinds: str, rows: list[int]) -> None:
    """The newline at a picture's end belongs to it; without any text behind, the last row asks."""
    generator = torch.Generator().manual_seed(len(kinds))
    query, key = torch.randn(4, len(kinds), 8, generator=generator), torch.randn(2, len(kinds), 8, generator=generator)
    expected = torch.zeros(len(kinds))
    for head in range(4):
        for row in rows:
            probabilities = torch.softmax(key[head // 2, : row + 1] @ query[head, row] * 0.5, dim=0)
            expected[: row + 1] += probabilities / (4 * len(rows))
    prefill = prefill_of(kinds, key, query)
    kept = STAGE(prefill, 2, score_layer="own")
    torch.testing.assert_close(kept.scores, expected[prefill.visual])
    assert kept.chosen.tolist() == sorted(kept.scores.topk(2).indices.tolist())
    other = STAGE(prefill, 2, score_layer="next")
    assert (other.scores - kept.scores).abs().max() > 1e-3
    assert STAGE(prefill, 99, score_layer="own").chosen.tolist() == list(range(kinds.count("v")))


def test_ties_take_the_lowest_row() -> None:
    assert STAGE(prefill_of("tvvvtt", torch.zeros(1, 6, 4)), 2, score_layer="own").chosen.tolist() == [0, 1]
    scores = STAGE(prefill_of("tvvvtt", torch.zeros(1, 6, 4)), 2, score_layer="own").scores
    torch.testing.assert_close(scores, torch.full((3,), (1 / 5 + 1 / 6) / 2))
