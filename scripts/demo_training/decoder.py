"""The decoder's stages: it learns, with the projector, to answer on all visual tokens of grids of several sizes.

What tells two pictures apart comes after all else, and is slow: the second stage is mostly about that.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from scripts.demo_training.labels import PATCHES
from scripts.demo_training.loop import run
from scripts.demo_training.optimizer import Optimizer, Schedule
from scripts.demo_training.packing import answer_logits, pack
from scripts.demo_training.pictures import Pictures
from scripts.demo_training.practice import echoes, practice
from sts_export.demo.questions import Question, ask_both

PRACTICE_BOTH = 12
ALIGNED = 4  # pictures of a step, at most, whose patches are drawn to words


@dataclass(frozen=True)
class Stage:
    """What a stage is about.

    Args:
        number: of the stage; what it draws follows from it.
        two_pictures: share of the steps.
        most_echoes: first steps that have many text-only questions.  Names travel from question to answer only after the model
            has said some; see practice.py.
    """

    name: str
    number: int
    schedule: Schedule
    two_pictures: float
    most_echoes: int = 0


DECODER = Stage("decoder", 3, Schedule(steps=4300, matrices=2e-3, attention=1e-3, others=2e-3), 0.3, most_echoes=600)
PAIRS = Stage("pairs", 4, Schedule(steps=2400, matrices=1e-3, attention=5e-4, others=1e-3), 0.65)
MANY_ECHOES, ECHOES = 4, 1


@dataclass(frozen=True)
class Grid:
    """Patches of a cell whose features are averaged; how often it is drawn for one picture, and for each of two."""

    cell: tuple[int, int]
    single: float
    paired: float

    @property
    def tokens(self) -> int:
        return PATCHES // (self.cell[0] * self.cell[1])


# None is coarser: in a cell of more patches a thing fades into its background, and "there is one" is learned on weak evidence.
GRIDS = (
    Grid((1, 1), 0.15, 0.20),
    Grid((1, 2), 0.15, 0.15),
    Grid((2, 1), 0.15, 0.15),
    Grid((2, 2), 0.55, 0.50),
)
# Rotary positions that a visual token takes, as InternVL's V2PE draws them (arXiv 2412.09616): with these, and with a grid of
# its own for each of two pictures, neither place nor picture can be read from a distance.
STRIDES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
WHOLE = 0.5  # share of pictures with a stride of 1, as all have it after training
VISUAL_TOKENS, MOST_ROWS = 1152, 6  # of a step
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
    stage: Stage,
    later: Sequence[Path] = (),
) -> None:
    """Train projector and decoder of `model` in place; the state lives in `file`, and those of ``later`` stages go with it."""
    torch.manual_seed(seed)
    pictures, features = train
    language = model.model.language_model
    projector = model.model.multi_modal_projector
    rest = [language.embed_tokens, language.norm, model.lm_head]
    optimizer = Optimizer([*language.layers, projector], rest, stage.schedule)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, stage.number, number])
        both = bool(rng.random() < stage.two_pictures)
        grids = _drawn(rng, 2 if both else 1)
        batch = min(MOST_ROWS, VISUAL_TOKENS // sum(grid.tokens for grid in grids))
        rows = rng.choice(len(pictures), (len(grids), batch), replace=False)
        scenes = [[pictures.scene(int(row)) for row in some] for some in rows]
        if both:
            asked = [ask_both((a, b), rng, PRACTICE_BOTH) for a, b in zip(*scenes, strict=True)]
        else:
            asked = [practice(scene, rng) for scene in scenes[0]]
        told = MANY_ECHOES if number < stage.most_echoes else ECHOES
        asked = [[*dict.fromkeys(questions), *echoes(rng, told)] for questions in asked]
        visual = [pooled(features, some, grid.cell) for some, grid in zip(rows, grids, strict=True)]
        packed = pack(tokenizer, asked)
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            strides = [1.0 if rng.random() < WHOLE else float(rng.choice(STRIDES[1:])) for _ in grids]
            logits, targets, index = answer_logits(model, tokenizer, visual, packed, system_text(rng), strides)
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        some = rows[0][:ALIGNED]
        aligned = alignment_loss(model, tokenizer, pooled(features, some, (1, 1)), *pictures.dense(some))
        logged = {**_by_kind(asked, losses.detach(), index), "aligned": aligned.item()}
        return losses.mean() + SHARE * aligned, logged

    def watch() -> str:
        return report(count_right(graded(model, tokenizer, *held_out, count=40)))

    run(stage.name, nn.ModuleList([language, projector, model.lm_head]), optimizer, step, file, watch, later)


def _drawn(rng: np.random.Generator, pictures: int) -> list[Grid]:
    """A grid for each of `pictures` pictures of a conversation."""
    shares = [grid.single if pictures == 1 else grid.paired for grid in GRIDS]
    return [GRIDS[i] for i in rng.choice(len(GRIDS), pictures, p=shares)]


def _by_kind(asked: list[list[Question]], losses: Tensor, index: Tensor) -> dict[str, float]:
    """Mean loss of every kind's answer tokens."""
    kinds = [asked[i // 1000][i % 1000].kind for i in index.tolist()]
    sums: dict[str, list[float]] = {}
    for kind, loss in zip(kinds, losses.tolist(), strict=True):
        sums.setdefault(kind, []).append(loss)
    return {kind: sum(some) / len(some) for kind, some in sums.items()}
