"""Attention that some keys are hidden from, with a gradient for hiding and showing each of them.

Forward: transformers' scaled dot product attention without the hidden keys, exactly.

Backward, for the mask m of key j, beside the usual gradients of queries, keys and values:

    dL/dm_j = sum over heads and rows i != j of  a_ij  g_i . (v_j - o_i)

where g_i is the gradient of output o_i, and a_ij is the attention that j has (where it is seen) or would have were it added
to what is seen: sigmoid(s_ij - logsumexp of the scores that are seen).  For a key that is seen this is the derivative of

    o_i = sum_j m_j exp(s_ij) v_j / sum_j m_j exp(s_ij)

at m_j = 1, the softmax of DynamicViT (arXiv 2106.02034).  For a hidden one that formula's derivative at 0 has exp(s_ij) over
the sum without j, which has no bound; ours is what o_i changes by if j is shown, to first order in g_i.  An additive mask
log(m_j) would have no gradient at all there: its derivative 1 / m_j is infinite and its attention 0.

A row always sees itself, so that a hidden token's keys and values are those that it would have were it alone shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "learnpruner"


@dataclass(frozen=True)
class Mask:
    """What rows see.

    keep: [S] float32, 1 or 0; its gradient is :data:`masked_attention`'s.
    allowed: [S, S] bool, row i may see column j if that is kept.
    """

    keep: Tensor
    allowed: Tensor

    @property
    def seen(self) -> Tensor:
        """[S, S] bool."""
        own = torch.eye(len(self.keep), dtype=torch.bool, device=self.keep.device)
        return self.allowed & ((self.keep.detach() > 0.5)[None] | own)


class MaskedAttention(torch.autograd.Function):
    """query, key, value [1, H, S, d]; keep [S]; allowed, seen [S, S] bool; scale -> [1, H, S, d].

    What a hidden token's row gives must reach no loss.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, keep: Tensor, allowed: Tensor, seen: Tensor, scale: float
    ) -> Tensor:
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)
        ctx.save_for_backward(query, key, value, keep, allowed, seen, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, keep, allowed, seen, out = ctx.saved_tensors
        rows = (keep > 0.5).nonzero()[:, 0]  # those of hidden tokens reach no other row, so their gradient is 0
        q, o, g = (tensor[0, :, rows].float() for tensor in (query, out, gradients[0]))
        k, v, seen = key[0].float(), value[0].float(), seen[rows]
        scores = (q @ k.transpose(1, 2)) * ctx.scale  # [H, R, S]
        total = scores.masked_fill(~seen, -torch.inf).logsumexp(-1, keepdim=True)
        relative = scores - total
        attention = relative.exp().masked_fill(~seen, 0)
        change = g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True)  # g_i . (v_j - o_i)
        towards = attention * change
        share = torch.where(seen, attention, relative.sigmoid().masked_fill(~allowed[rows], 0))
        on_keep = (share * change).sum(0)
        on_keep[torch.arange(len(rows), device=rows.device), rows] = 0
        d_query: Tensor | None = None
        d_key: Tensor | None = None
        d_value: Tensor | None = None
        if ctx.needs_input_grad[0]:
            d_query = torch.zeros_like(query)
            d_query[0, :, rows] = ((towards @ k) * ctx.scale).to(query.dtype)
        if ctx.needs_input_grad[1]:
            d_key = ((towards.transpose(1, 2) @ q) * ctx.scale)[None].to(key.dtype)
        if ctx.needs_input_grad[2]:
            d_value = (attention.transpose(1, 2) @ g)[None].to(value.dtype)
        return d_query, d_key, d_value, on_keep.sum(0), None, None, None


def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    *,
    mask: Mask,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; ``attention_mask`` [S, S] bool is ``mask.seen``."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out: Tensor = MaskedAttention.apply(query, key, value, mask.keep, mask.allowed, attention_mask, scaling)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, masked_attention)
