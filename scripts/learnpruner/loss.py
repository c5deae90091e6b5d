"""What is minimized: the answers' cross entropy without the dropped tokens, and how far the keep rate is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scripts.learnpruner.masked_attention import NAME, Mask
from scripts.learnpruner.scorer import Scorer, keep_mask
from scripts.learnpruner.sequences import IGNORED, Packed
from sts_export.reference import ReferenceModel


@dataclass(frozen=True)
class Loss:
    """total: to be minimized; answers: mean cross entropy of an answer token; rate: share of tokens kept."""

    total: Tensor
    answers: float
    rate: float


def use_masked_attention(model: ReferenceModel) -> None:
    """The decoder's layers attend by :func:`masked_attention` from now on; the tower's stay as they are."""
    model.decoder.config._attn_implementation = NAME


def sequence_loss(
    model: ReferenceModel,
    scorer: Scorer,
    packed: Packed,
    features: Sequence[Tensor],
    targets: Sequence[float],
    weight: float,
) -> Loss:
    """answers + weight * mean over pictures of (mean keep rate - target)^2.

    Args:
        features: [N, C] of each picture.
        targets: share of each picture's tokens that is to be kept.
    """
    masks = [keep_mask(scorer(each)) for each in features]
    logits = answer_logits(model, packed, features, masks)
    answers = nn.functional.cross_entropy(logits.float(), packed.targets[packed.targets != IGNORED].to(logits.device))
    rates = torch.stack([mask.mean() for mask in masks])
    off = (rates - torch.tensor(list(targets), device=rates.device)).square().mean()
    return Loss(answers + weight * off, answers.item(), rates.mean().item())


def answer_logits(model: ReferenceModel, packed: Packed, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Logits [answer tokens, vocab] where visual tokens are seen as the masks say.

    Args:
        masks: [N] float32 of each picture, 1 or 0.
    """
    device = model.model.device
    embeds = model.embed(packed.ids.tolist()).clone()
    for rows, own in zip(packed.visual, features, strict=True):
        embeds[rows] = model.project(own).to(embeds.dtype)
    if len(packed.newlines):
        embeds[packed.newlines] = model.newline().to(embeds.dtype)
    rows = torch.cat(list(packed.visual)).to(device)
    keep = torch.ones(len(packed.ids), device=device).index_put((rows,), torch.cat(list(masks)))
    mask = Mask(keep, packed.allowed.to(device))
    hidden: Any = embeds[None]
    rotary = model.rotary(hidden, packed.positions.to(device))
    seen = mask.seen
    for layer in model.decoder.layers:
        hidden = layer(hidden, attention_mask=seen, position_embeddings=rotary, mask=mask)
    asked = hidden[0, (packed.targets != IGNORED).to(device)]
    logits: Tensor = model.model.lm_head(model.decoder.norm(asked))
    return logits
