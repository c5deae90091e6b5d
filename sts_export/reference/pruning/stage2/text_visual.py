"""Attention of the text after the last picture (STAR, STAR-Pro, LearnPruner)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Kept, Prefill
from sts_export.reference.pruning.stage2.last_token import top_positions


def stage2(prefill: Prefill, keep: int, /, *, score_layer: Literal["own", "next"]) -> Kept:
    """The K' that these text rows attend to most, on average over rows and heads."""
    query, key = prefill.own() if score_layer == "own" else prefill.next()
    rows = text_after_pictures(prefill.text)
    scores = mean_attention(query, key, rows if len(rows) else torch.tensor([len(prefill.text) - 1]), prefill.scale)
    scores = scores[prefill.visual]
    return Kept(top_positions(scores, keep), scores)


STAGE = stage2


def text_after_pictures(text: Tensor) -> Tensor:
    """Text rows behind the last row of a picture, visual or newline: [S] bool -> [n] int64, ascending."""
    pictures = (~text).nonzero()[:, 0]
    start = int(pictures[-1]) + 1 if len(pictures) else 0
    return torch.arange(start, len(text))


def mean_attention(query: Tensor, key: Tensor, rows: Tensor, scale: float) -> Tensor:
    """What each row receives of the causal attention of some: [H, S, D], [H_kv, S, D], [n] int64 -> [S] float32.

    Products and softmax are float32 whatever the type of query and key; the mean is over heads and rows.
    """
    heads, length, _ = query.shape
    keys = key.float().repeat_interleave(heads // len(key), dim=0)
    logits = torch.einsum("hnd,hsd->hns", query[:, rows].float(), keys) * scale
    logits = logits.masked_fill(torch.arange(length)[None, :] > rows[:, None], float("-inf"))
    return logits.softmax(dim=-1).mean(dim=(0, 1))
