"""The projector's stage: projected patches are drawn to the embeddings of their words, as captions do it in LLaVA's first one.

What a feature says of a thing's place is a hundredth of its variance: without this a decoder could not tell left from right
after 2500 steps.  No decoder layer takes part, so it is a matter of seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.features import pooled
from scripts.demo_training.labels import CELLS, THING
from scripts.demo_training.loop import run
from scripts.demo_training.optimizer import Optimizer, Schedule
from scripts.demo_training.packing import encode
from scripts.demo_training.pictures import Pictures, batch_rows
from sts_export.demo.world import COLORS, SHAPES

SHARPNESS = 12.0
SHARE = 0.2  # of the loss of the stage after this one
SCHEDULE = Schedule(steps=600, matrices=0.0, attention=0.0, others=1.5e-3)
BATCH = 16
VERTICAL, HORIZONTAL = CELLS + THING - 2, CELLS + THING - 1  # the thing's centre among the geometry labels


def alignment_loss(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: Tensor,
    labels: Tensor,
    geometry: Tensor,
) -> Tensor:
    """Cross entropy of the words of every patch near a thing: shape, color, top or bottom, left or right.

    Args:
        features: [b, 576, width], before the projector.
        labels: [b, 576, channels] int64.
        geometry: [b, 576, 23].
    """
    near = labels[..., 0] > 0
    projected = nn.functional.normalize(model.model.multi_modal_projector(features[near]), dim=-1)
    embedding = model.model.language_model.embed_tokens.weight
    choices: list[tuple[tuple[str, ...], Tensor]] = [
        (SHAPES, labels[near][:, 0] - 1),
        (tuple(COLORS), labels[near][:, 1] - 1),
        (("top", "bottom"), (geometry[near][:, VERTICAL] >= 0).long()),
        (("left", "right"), (geometry[near][:, HORIZONTAL] >= 0).long()),
    ]
    losses = []
    for words, label in choices:
        ids = torch.tensor([encode(tokenizer, f" {word}")[-1] for word in words])
        logits = SHARPNESS * projected @ nn.functional.normalize(embedding[ids], dim=-1).T
        losses.append(nn.functional.cross_entropy(logits, label))
    return torch.stack(losses).sum()


def align(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Pictures,
    features: NDArray[np.float16],
    file: Path,
    seed: int,
    schedule: Schedule,
) -> None:
    """Train projector and embeddings of `model` in place; the state lives in `file`."""
    projector, embeddings = model.model.multi_modal_projector, model.model.language_model.embed_tokens
    optimizer = Optimizer([], [projector, embeddings], schedule)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        rows = batch_rows(len(pictures), min(BATCH, len(pictures)), seed, number)
        return alignment_loss(model, tokenizer, pooled(features, rows, (1, 1)), *pictures.dense(rows)), {}

    run("projector", nn.ModuleList([projector, embeddings]), optimizer, step, file)
