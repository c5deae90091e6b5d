"""The two selections as pure functions of tensors, written for exactness.

Equation numbers are those of the STS paper (arXiv 2606.03569); N visual tokens of width C, K kept by stage 1, K' by stage 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sts_export.pruning.config import DEFAULT_EPSILON, Anchor


class Repulsion(NamedTuple):
    """Stage 1 in the order in which it happened.

    order: [K] int64, the tokens as they were chosen (the anchor first).
    margins: [K] float64, how clear each choice was: (runner-up - winner) / winner of the compared values, 0 for a tie,
        infinite where there was no choice. A small margin marks a choice that rounding may turn.
    """

    order: Tensor
    margins: Tensor


def squared_distances(features: Tensor, point: Tensor) -> Tensor:
    """||v_i - point||² (eq. 3): [N, C], [C] -> [N] float32.

    From explicit differences in float64, rounded once: float32 without the cancellation of a Gram matrix, and exactly 0
    for equal rows.
    """
    difference = features.double() - point.double()
    return (difference * difference).sum(dim=1).float()


def _margin(values: Tensor, winner: int) -> float:
    """Relative distance of the smallest value from the next one: [N] float32, index -> >= 0."""
    others = torch.cat([values[:winner], values[winner + 1 :]]).double()
    best = float(values[winner])
    if not len(others) or torch.isinf(others).all():
        return float("inf")
    gap = float(others.min()) - best
    return gap / abs(best) if best else (float("inf") if gap else 0.0)


def repulsion_trace(
    features: Tensor,
    keep: int,
    *,
    anchor: Anchor = "mean",
    saliency: Tensor | None = None,
    epsilon: float = DEFAULT_EPSILON,
) -> Repulsion:
    """The greedy choices of stage 1 (eq. 3-5), of which there are ``min(keep, N)``.

    Args:
        features: [N, C], any float type.
        keep: K >= 1.
        anchor: first token: closest to the ``mean`` of the features, the ``first`` one, or highest ``saliency``.
        saliency: [N], only for that anchor.
        epsilon: added to the squared distance.

    Potentials are summed in float32 in the order of the choices, as METHOD's float32 distances suggest; a float64 sum
    could break ties that float32 has.
    """
    count = len(features)
    if keep < 1 or count < 1:
        raise ValueError(f"cannot keep {keep} of {count} tokens")
    features = features.double()
    if not torch.isfinite(features).all():
        raise ValueError("the features are not finite: nothing can be compared")
    if anchor == "mean":
        compared = squared_distances(features, features.mean(dim=0))
    elif anchor == "first":
        compared = torch.arange(count, dtype=torch.float32)
    else:
        if saliency is None or saliency.shape != (count,):
            raise ValueError("the saliency anchor needs one saliency value per token")
        compared = -saliency.float()
    order: list[int] = []
    margins: list[float] = []
    potential = torch.zeros(count, dtype=torch.float32)
    while True:
        chosen = int(torch.argmin(compared))  # torch.argmin returns the first of equal minima
        order.append(chosen)
        margins.append(_margin(compared, chosen))
        if len(order) == min(keep, count):
            return Repulsion(torch.tensor(order, dtype=torch.int64), torch.tensor(margins, dtype=torch.float64))
        potential = potential + 1.0 / (squared_distances(features, features[chosen]) + epsilon)  # eq. 4
        compared = potential.index_fill(0, torch.tensor(order), float("inf"))  # argmin over i not in S, eq. 5


def repulsion_select(
    features: Tensor,
    keep: int,
    *,
    anchor: Anchor = "mean",
    saliency: Tensor | None = None,
    epsilon: float = DEFAULT_EPSILON,
) -> Tensor:
    """Stage 1: the tokens kept, ascending: [N, C] -> [min(K, N)] int64. Arguments as in :func:`repulsion_trace`."""
    if keep >= len(features):
        return torch.arange(len(features))
    return repulsion_trace(features, keep, anchor=anchor, saliency=saliency, epsilon=epsilon).order.sort().values


def equal_shares(keep: int, candidates: Sequence[int]) -> list[int]:
    """How many tokens each crop keeps: crops are filled evenly, a crop with fewer tokens than the others get keeps all of its
    own, and what does not divide goes to the first crops that have more.

    Args:
        keep: K; the result sums to ``min(keep, sum(candidates))``.
        candidates: tokens of each crop that the model reads.
    """
    level = max(level for level in range(keep + 1) if sum(min(count, level) for count in candidates) <= keep)
    shares = [min(count, level) for count in candidates]
    unfilled = [crop for crop, count in enumerate(candidates) if count > level]
    for crop in unfilled[: keep - sum(shares)]:
        shares[crop] += 1
    return shares


def select_by_crop(
    features: Tensor,
    crops: Tensor,
    keep: int,
    *,
    anchor: Anchor = "mean",
    saliency: Tensor | None = None,
    epsilon: float = DEFAULT_EPSILON,
) -> tuple[list[int], list[Repulsion | None]]:
    """Stage 1 of one image whose crops are selected each within itself.

    Args:
        features: [N, C], the candidates only.
        crops: [N] int64, the crop of each; crops without any candidate count for nothing.
        keep: K of the whole image.
        anchor, saliency, epsilon: as in :func:`repulsion_trace`; the anchor is one of each crop's own tokens.

    Returns:
        The kept tokens, ascending, and per crop the greedy choices in numbers of the image's tokens, or none where nothing
        was chosen (the crop keeps all of its tokens, or none).
    """
    members = [(crops == crop).nonzero()[:, 0] for crop in range(int(crops.max()) + 1)]
    kept: list[int] = []
    traces: list[Repulsion | None] = []
    for tokens, share in zip(members, equal_shares(keep, [len(tokens) for tokens in members]), strict=True):
        trace = None
        if 0 < share < len(tokens):
            own = None if saliency is None else saliency[tokens]
            inside = repulsion_trace(features[tokens], share, anchor=anchor, saliency=own, epsilon=epsilon)
            trace = Repulsion(tokens[inside.order], inside.margins)
        traces.append(trace)
        kept += tokens[:share].tolist() if trace is None else trace.order.tolist()
    return sorted(kept), traces


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
