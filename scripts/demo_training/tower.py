"""The tower's stage: the vision tower learns dense and global labels, alone.  After it the tower is frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from scripts.demo_training.labels import CELLS, CHANNELS, GEOMETRY, GLOBAL, GRID, THING
from scripts.demo_training.loop import run
from scripts.demo_training.model import VISION_WIDTH
from scripts.demo_training.optimizer import Optimizer, Schedule
from scripts.demo_training.pictures import Pictures, batch_rows

# Most steps see all busy patches and some others only, which costs a third; the last ones see all 576.
SPARSE = 192
SPARSE_BATCH, FULL_BATCH = 8, 4
FULL_STEPS = 1000
SCHEDULE = Schedule(steps=3200, matrices=3e-3, attention=1.5e-3, others=3e-3)
IDLE_WEIGHT = 0.15  # of patches with nothing near, against busy ones


class Heads(nn.Module):
    """Throw-away readers of the features: dense labels and geometry per patch, global labels from the CLS token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VISION_WIDTH)
        self.patch = nn.Linear(VISION_WIDTH, sum(CHANNELS.values()) + GEOMETRY)
        self.cls = nn.Linear(VISION_WIDTH, GLOBAL)

    def forward(self, features: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        features = self.norm(features)
        return self.patch(features[:, 1:]).split([*CHANNELS.values(), GEOMETRY], -1), self.cls(features[:, 0])


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Hidden state -2 of the vision tower [b, 577, width], without computing the unused last layer.

    With `keep` [b, k] the tower sees only those patches and the CLS token, and returns [b, 1 + k, width].
    """
    tower = model.model.vision_tower
    hidden: Tensor = tower.pre_layrnorm(tower.embeddings(pixels))
    if keep is not None:
        hidden = torch.cat([hidden[:, :1], torch.take_along_dim(hidden[:, 1:], keep[..., None], 1)], 1)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


def train_tower(
    model: LlavaForConditionalGeneration, train: Pictures, held_out: Pictures, file: Path, seed: int, schedule: Schedule
) -> None:
    """Train `model`'s tower in place; the state lives in `file`."""
    torch.manual_seed(seed)
    heads = Heads()
    tower = model.model.vision_tower
    optimizer = Optimizer(tower.encoder.layers[:-1], [tower.embeddings, tower.pre_layrnorm, heads], schedule)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        rows = batch_rows(len(train), SPARSE_BATCH, seed, number)
        keep = None
        if number >= schedule.steps - FULL_STEPS:
            rows = rows[:FULL_BATCH]
        labels, geometry = train.dense(rows)
        if number < schedule.steps - FULL_STEPS:
            generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + number)
            keep = sparse_rows(labels, generator)
            labels, geometry = (torch.take_along_dim(x, keep[..., None], 1) for x in (labels, geometry))
        features = vision_features(model, train.batch(rows), keep)
        return dense_loss(heads, features, labels, geometry, train.present(rows))

    @torch.no_grad()
    def report() -> str:
        rows = np.arange(min(24, len(held_out)))
        labels, geometry = held_out.dense(rows)
        features = vision_features(model, held_out.batch(rows))
        _, right = dense_loss(heads, features, labels, geometry, held_out.present(rows))
        return "    held out: " + " ".join(f"{name} {value:.3f}" for name, value in right.items())

    run("tower", nn.ModuleList([tower, heads]), optimizer, step, file, report)


def is_busy(labels: Tensor) -> Tensor:
    """Patches that have something near [b, 576] float32, from dense labels."""
    return ((labels[..., 0] > 0) | (labels[..., 2] > 0)).float()


def sparse_rows(labels: Tensor, generator: torch.Generator) -> Tensor:
    """SPARSE patches of every picture [b, SPARSE], in their order: busy ones, their neighbours, some others."""
    busy = is_busy(labels)
    wide = nn.functional.max_pool2d(busy.view(-1, 1, GRID, GRID), 3, 1, 1).flatten(1)
    noise = torch.rand(busy.shape, generator=generator, device="cpu").to(busy.device)
    order = 2 * busy + 0.3 * wide + noise
    return order.topk(SPARSE).indices.sort().values


def dense_loss(
    heads: Heads, features: Tensor, labels: Tensor, geometry: Tensor, present: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of all channels, squared error of the geometry, presence from the CLS token; and shares right."""
    dense, seen = heads(features)
    busy = is_busy(labels)
    weight = torch.where(busy > 0, 1.0, IDLE_WEIGHT)
    weight = (weight / weight.sum()).flatten()
    total, right = torch.zeros(()), {}
    for channel, (name, logits) in enumerate(zip(CHANNELS, dense, strict=False)):
        label = labels[..., channel]
        total = total + (nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none") * weight).sum()
        right[name] = (logits.argmax(-1) == label)[label > 0].float().mean().item()
    error = (dense[-1] - geometry).square()
    thing = error[..., CELLS : CELLS + THING].mean(-1) * (labels[..., 0] > 0)
    other = error[..., :CELLS].mean(-1) + error[..., CELLS + THING :].mean(-1)
    total = total + ((2 * thing + other).flatten() * weight).sum()
    right["off"] = error[..., CELLS + 2 : CELLS + THING][labels[..., 0] > 0].mean().sqrt().item() * 50
    total = total + 3 * nn.functional.binary_cross_entropy_with_logits(seen, present)
    right["cls"] = (seen > 0)[present > 0.5].float().mean().item()
    return total, right
