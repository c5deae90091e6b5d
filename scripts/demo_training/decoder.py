"""The decoder's stage: it learns, with the projector, to answer on all visual tokens of grids of several sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.alignment import SHARE, alignment_loss
from scripts.demo_training.features import pooled
from scripts.demo_training.grades import count_right, graded, report
from scripts.demo_training.loop import run
from scripts.demo_training.optimizer import Optimizer, Schedule
from scripts.demo_training.packing import answer_logits, pack
from scripts.demo_training.pictures import Pictures
from scripts.demo_training.practice import echoes, practice
from sts_export.demo.questions import Question, ask_both

SCHEDULE = Schedule(steps=4300, matrices=2e-3, attention=1e-3, others=2e-3)
# Names travel from question to answer only after the model has said some; see practice.py.
FIRST_STEPS, FIRST_ECHOES, ECHOES = 600, 4, 1
PRACTICE_BOTH = 6
ALIGNED = 4  # pictures of a step, at most, whose patches are drawn to words
TWO_PICTURES = 0.3  # share of the steps


@dataclass(frozen=True)
class Grid:
    """Patches of a cell whose features are averaged; pictures, or pairs of pictures, in a step; share of the steps."""

    cell: tuple[int, int]
    batch: int
    pairs: int
    share: float


GRIDS = (Grid((1, 1), 2, 1, 0.15), Grid((1, 2), 4, 2, 0.15), Grid((2, 1), 4, 2, 0.15), Grid((2, 2), 6, 4, 0.55))
# Texts before the user's turn: with them, and with the grids, no place in a picture has a position of its own.
SYSTEM = (
    "You are a helpful assistant.",
    "Answer with a word.",
    "There are things in the picture.",
    "Tell me what you can see in the picture.",
    "The picture shows things of six colors and a word.",
    "Say where it is, what color it has, or which shape.",
    "Count all of them, if there is a number to say.",
)


def system_text(rng: np.random.Generator) -> str:
    """None in half of the cases, else some sentences in any order, a space after each."""
    if rng.random() < 0.5:
        return ""
    return "".join(SYSTEM[i] + " " for i in rng.permutation(len(SYSTEM))[: rng.integers(1, len(SYSTEM) + 1)])


def train_decoder(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    train: tuple[Pictures, NDArray[np.float16]],
    held_out: tuple[Pictures, NDArray[np.float16]],
    file: Path,
    seed: int,
    schedule: Schedule,
) -> None:
    """Train projector and decoder of `model` in place; the state lives in `file`."""
    torch.manual_seed(seed)
    pictures, features = train
    language = model.model.language_model
    projector = model.model.multi_modal_projector
    rest = [language.embed_tokens, language.norm, model.lm_head]
    optimizer = Optimizer([*language.layers, projector], rest, schedule)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, 3, number])
        grid = GRIDS[int(rng.choice(len(GRIDS), p=[grid.share for grid in GRIDS]))]
        both = bool(rng.random() < TWO_PICTURES)
        rows = rng.choice(len(pictures), (2, grid.pairs) if both else (1, grid.batch), replace=False)
        scenes = [[pictures.scene(int(row)) for row in some] for some in rows]
        if both:
            asked = [ask_both((a, b), rng, PRACTICE_BOTH) for a, b in zip(*scenes, strict=True)]
        else:
            asked = [practice(scene, rng) for scene in scenes[0]]
        told = FIRST_ECHOES if number < FIRST_STEPS else ECHOES
        asked = [[*dict.fromkeys(questions), *echoes(rng, told)] for questions in asked]
        visual = [pooled(features, some, grid.cell) for some in rows]
        packed = pack(tokenizer, asked)
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            logits, targets, index = answer_logits(model, tokenizer, visual, packed, system_text(rng))
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        some = rows[0][:ALIGNED]
        aligned = alignment_loss(model, tokenizer, pooled(features, some, (1, 1)), *pictures.dense(some))
        logged = {**_by_kind(asked, losses.detach(), index), "aligned": aligned.item()}
        return losses.mean() + SHARE * aligned, logged

    def watch() -> str:
        return report(count_right(graded(model, tokenizer, *held_out, count=40)))

    run("decoder", nn.ModuleList([language, projector, model.lm_head]), optimizer, step, file, watch)


def _by_kind(asked: list[list[Question]], losses: Tensor, index: Tensor) -> dict[str, float]:
    """Mean loss of every kind's answer tokens."""
    kinds = [asked[i // 1000][i % 1000].kind for i in index.tolist()]
    sums: dict[str, list[float]] = {}
    for kind, loss in zip(kinds, losses.tolist(), strict=True):
        sums.setdefault(kind, []).append(loss)
    return {kind: sum(some) / len(some) for kind, some in sums.items()}
