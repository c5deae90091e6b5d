"""Attention of the last prompt token (docs/method.md, "Stage 2", equations 6 and 7): K' of V visual tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sts_export.reference.pruning.stage import Kept, Prefill


def stage2(prefill: Prefill, keep: int, /, *, score_layer: Literal["own", "next"]) -> Kept:
    """The K' that the last token attends to most."""
    query, key = prefill.own() if score_layer == "own" else prefill.next()
    scores = last_token_scores(query, key, prefill.visual, scale=prefill.scale)
    return Kept(top_positions(scores, keep), scores)


STAGE = stage2


def last_token_scores(query: Tensor, key: Tensor, visual: Tensor, *, real: Tensor | None = None, scale: float) -> Tensor:
    """R(v), the attention of the last real token to every visual token, averaged over query heads (eq. 6).

    Args:
        query: [H, S, D], after rotary embedding; only the row of the last real token is read.
        key: [H_kv, S, D], after rotary embedding; query head h reads key head h // (H / H_kv).
        visual: [S] bool, V positions are true.
        real: [S] bool, false for padding (before or after); all true if absent.
        scale: 1 / sqrt(D) in LLaMA.

    Returns:
        [V] float32. Products and softmax are float32 whatever the type of query and key; the softmax runs over all real
        positions up to the last one and is only then restricted to the visual ones.
    """
    heads, length, _ = query.shape
    present = torch.ones(length, dtype=torch.bool) if real is None else real
    last = int(present.nonzero()[-1])
    visible = present & (torch.arange(length) <= last)
    keys = key.float().repeat_interleave(heads // len(key), dim=0)
    logits = torch.einsum("hd,hsd->hs", query[:, last].float(), keys) * scale
    probabilities = logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return probabilities.mean(dim=0)[visual]


def top_positions(scores: Tensor, keep: int) -> Tensor:
    """The largest scores, ties to the lowest index, ascending (eq. 7): [V] -> [min(K', V)] int64."""
    return torch.sort(scores, descending=True, stable=True).indices[:keep].sort().values


def last_token_topk(
    query: Tensor, key: Tensor, visual: Tensor, keep: int, *, real: Tensor | None = None, scale: float
) -> Tensor:
    """Stage 2: which of the V visual tokens stay, counted from the first visual one, ascending: [min(K', V)] int64.

    Arguments as in :func:`last_token_scores`.
    """
    return top_positions(last_token_scores(query, key, visual, real=real, scale=scale), keep)
