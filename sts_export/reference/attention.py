"""What a layer of a vision tower attends to, from its queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cls_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention of the first row to all others, mean over heads: [crops, S, H, D] twice -> [crops, S - 1] float32."""
    logits = torch.einsum("bhd,bkhd->bhk", query[:, 0].float(), key.float()) * scale
    return logits.softmax(dim=-1).mean(dim=1)[:, 1:]


def column_means(query: Tensor, key: Tensor, scale: float, *, cls: bool) -> Tensor:
    """What each patch receives, mean over heads and querying patches.

    Args:
        query, key: [crops, S, H, D], of every row that attends.
        cls: the first row is CLS: a key as the others, but it neither queries nor is reported.

    Returns:
        [crops, S] or [crops, S - 1] float32.
    """
    first = int(cls)
    heads = []
    for head in range(query.shape[2]):  # one matrix at a time: pictures may have 16 thousand patches
        logits = query[:, first:, head].float() @ key[:, :, head].float().transpose(1, 2) * scale
        heads.append(logits.softmax(dim=-1).mean(dim=1)[:, first:])
    return torch.stack(heads).mean(dim=0)


def rounded(number: float) -> int:
    """Half up."""
    return math.floor(number + 0.5)
