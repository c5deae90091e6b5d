"""Attention of the last token, by hand and against padding and grouped heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sts_export.reference import last_token_scores, last_token_topk, top_positions

torch.set_num_threads(1)


def test_top_positions_ties_and_order() -> None:
    scores = torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5])
    assert [top_positions(scores, keep).tolist() for keep in (1, 2, 3, 4, 9)] == [
        [1],
        [1, 3],
        [0, 1, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]
    assert top_positions(torch.zeros(3000), 480).tolist() == list(range(480))


def test_last_token_by_hand() -> None:
    query = torch.zeros(2, 5, 4)
    key = torch.randn(1, 5, 4)
    visual = torch.tensor([False, True, True, False, False])
    assert last_token_scores(query, key, visual, scale=0.5).tolist() == pytest.approx([0.2, 0.2])
    real = torch.tensor([True, True, True, True, False])  # padding after: the last real token is number 3
    assert last_token_scores(query, key, visual, real=real, scale=0.5).tolist() == pytest.approx([0.25, 0.25])
    key = torch.zeros(1, 5, 4)
    query[0, 4, 0], query[1, 4, 0] = 2.0, -2.0
    key[0, 2, 0] = 3.0  # head 0 sees e^3 here, head 1 e^-3, both 1 elsewhere
    expected = (np.exp(3) / (np.exp(3) + 4) + np.exp(-3) / (np.exp(-3) + 4)) / 2
    assert last_token_scores(query, key, visual, scale=0.5)[1].item() == pytest.approx(expected, rel=1e-6)
    assert last_token_topk(query, key, visual, 1, scale=0.5).tolist() == [1]


@pytest.mark.parametrize("left, right", [(0, 0), (3, 0), (0, 2), (2, 4)])
def test_padding_does_not_change_the_scores(left: int, right: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(4, 9, 8, generator=generator), torch.randn(2, 9, 8, generator=generator)
    visual = torch.zeros(9, dtype=torch.bool)
    visual[2:7] = True
    plain = last_token_scores(query, key, visual, scale=8**-0.5)

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:, :1]] * left + [values] + [values[:, :1] * 50] * right, dim=1)

    def padded_mask(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (left, right))

    real = padded_mask(torch.ones(9, dtype=torch.bool))
    scores = last_token_scores(padded(query), padded(key), padded_mask(visual), real=real, scale=8**-0.5)
    torch.testing.assert_close(scores, plain)


def test_grouped_queries_read_their_own_key_head() -> None:
    query, key = torch.randn(6, 4, 8), torch.randn(2, 4, 8)
    visual = torch.ones(4, dtype=torch.bool)
    per_head = [torch.softmax(key[head // 3] @ query[head, 3] * 0.3, dim=0) for head in range(6)]
    torch.testing.assert_close(last_token_scores(query, key, visual, scale=0.3), torch.stack(per_head).mean(dim=0))
