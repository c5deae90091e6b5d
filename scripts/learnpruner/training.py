"""The loop: a step is a few pictures, each with some of its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW

from scripts.learnpruner.loss import Loss, sequence_loss, use_masked_attention
from scripts.learnpruner.pictures import Look
from scripts.learnpruner.scorer import Scorer
from scripts.learnpruner.sequences import Group, pack
from scripts.learnpruner.state import read_state, write_state
from sts_export.errors import RequestError, StsExportError
from sts_export.reference import ReferenceModel

SAMPLED = 32  # pictures whose features give mean and standard deviation
FINAL_RATE = 0.01  # of the highest


@dataclass(frozen=True)
class Settings:
    """What a training is beside model and data.

    steps: of the optimizer; batch: sequences a step; rate: the highest learning rate, after ``warmup`` steps, then a cosine;
    answers: at most so many in a sequence; most_rows: of a sequence; weight: of the squared difference of keep rates.
    """

    seed: int
    steps: int
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 20
    decay: float = 0.01
    weight: float = 20.0
    answers: int = 16
    most_rows: int = 2048

    def rate_at(self, step: int) -> float:
        """Of step ``step``, from 0."""
        down = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (FINAL_RATE + (1 - FINAL_RATE) * down)


@dataclass(frozen=True)
class Progress:
    """After a step; answers, rate: means over its sequences, as in :class:`Loss`."""

    step: int
    answers: float
    rate: float


def train(
    model: ReferenceModel,
    groups: Sequence[Group],
    look: Look,
    target: Callable[[int], float],
    settings: Settings,
    *,
    state: Path,
    identity: Mapping[str, Any],
    save_every: int = 20,
    report: Callable[[Progress], None] = lambda _: None,
) -> Scorer:
    """A scorer, trained from the state file's step on, or from the beginning.

    What a step looks at follows from the seed and its number: a training that goes on from a state is the one that was
    never stopped.

    Args:
        target: number of a picture's visual tokens -> share of them that is to be kept.
        identity: what must not change between stop and resumption.

    Raises:
        RequestError: as :func:`read_state`, a picture that cannot be read, or no answer that fits.
        StsExportError: the loss is no number.
    """
    use_masked_attention(model)
    first = [look(group.conversations[0].images[0]).features for group in _order(groups, settings.seed, SAMPLED)]
    scorer = Scorer(first[0].shape[1], settings.seed).to(first[0].device)
    scorer.standardize(first)
    optimizer = AdamW(scorer.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=settings.decay)
    done = read_state(state, scorer, optimizer, identity)
    for step in range(done, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        losses = []
        for place, chosen in _batch(groups, step, settings):
            order = np.random.default_rng([settings.seed, 1, place]).permutation(len(chosen.answers))
            if (loss := _loss(model, scorer, chosen, order[: settings.answers].tolist(), look, target, settings)) is None:
                continue
            if not math.isfinite(loss.total.item()):
                raise StsExportError(f"the loss of step {step + 1} is {loss.total.item()}; lower --rate, or train in bfloat16")
            (loss.total / settings.batch).backward()  # type: ignore[no-untyped-call]
            losses.append(loss)
        if not losses:
            most = settings.most_rows
            raise RequestError(f"no answer of step {step + 1} fits into {most} rows with its picture; raise --max-rows")
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            write_state(state, scorer, optimizer, step + 1, identity)
        report(Progress(step + 1, _mean([loss.answers for loss in losses]), _mean([loss.rate for loss in losses])))
    return scorer


def forget(state: Path) -> None:
    """The training is over."""
    with suppress(FileNotFoundError):
        state.unlink()


def _loss(
    model: ReferenceModel,
    scorer: Scorer,
    group: Group,
    order: Sequence[int],
    look: Look,
    target: Callable[[int], float],
    settings: Settings,
) -> Loss | None:
    seen = [look(file) for file in group.conversations[0].images]
    # Within a decoder's attention window its mask is the causal one.
    most = min(settings.most_rows, model.sliding_window or settings.most_rows)
    packed = pack(model, group, order, [each.image for each in seen], most)
    if packed is None:
        return None
    features = [each.features for each in seen]
    return sequence_loss(model, scorer, packed, features, [target(len(own)) for own in features], settings.weight)


def _batch(groups: Sequence[Group], step: int, settings: Settings) -> Iterator[tuple[int, Group]]:
    """Groups of a step and their places in the whole training: every epoch has all of them in another order."""
    for place in range(step * settings.batch, (step + 1) * settings.batch):
        epoch, number = divmod(place, len(groups))
        yield place, groups[np.random.default_rng([settings.seed, 0, epoch]).permutation(len(groups))[number]]


def _order(groups: Sequence[Group], seed: int, count: int) -> Iterator[Group]:
    return islice((groups[i] for i in np.random.default_rng([seed, 0, 0]).permutation(len(groups))), count)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
