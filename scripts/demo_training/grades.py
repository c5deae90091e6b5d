"""How many held-out questions a model in training answers rightly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.features import pooled
from scripts.demo_training.packing import answer_logits, pack
from scripts.demo_training.pictures import Pictures
from sts_export.demo.held_out import held_out_questions
from sts_export.demo.questions import KINDS, Question

BATCH = 10


@torch.no_grad()
def graded(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Pictures,
    features: NDArray[np.float16],
    count: int,
) -> list[tuple[int, Question, bool]]:
    """Every question about the first held-out pictures, and whether the greedy answer is right.

    An answer is right when every token (and the end) is the most likely one after the true ones before it, which is
    the same as greedy decoding giving it.  The last picture has no next one, and so no question about two.
    """
    grades: list[tuple[int, Question, bool]] = []
    for first in range(0, min(count, len(pictures)), BATCH):
        rows = np.arange(first, min(first + BATCH, count, len(pictures) - 1))
        questions = [held_out_questions(int(row)) for row in rows]
        for seen in (1, 2):
            asked = [[q for q in some if q.pictures == seen] for some in questions]
            with_any = [i for i, some in enumerate(asked) if some]
            taken, asked = rows[with_any], [asked[i] for i in with_any]
            if not asked:
                continue
            visual = [pooled(features, taken + k, (1, 1)) for k in range(seen)]
            logits, targets, index = answer_logits(model, tokenizer, visual, pack(tokenizer, asked))
            wrong = set(index[logits.argmax(-1) != targets].tolist())
            for i, some in enumerate(asked):
                grades += [(int(taken[i]), q, i * 1000 + number not in wrong) for number, q in enumerate(some)]
    return grades


def count_right(grades: list[tuple[int, Question, bool]]) -> dict[str, tuple[int, int]]:
    """(right, asked) per kind."""
    score = dict.fromkeys(KINDS, (0, 0))
    for _, question, right in grades:
        old = score[question.kind]
        score[question.kind] = (old[0] + right, old[1] + 1)
    return score


def report(score: dict[str, tuple[int, int]]) -> str:
    """One line: share of right answers overall and per kind."""
    right, asked = map(sum, zip(*score.values(), strict=True))
    kinds = (f"{kind} {r / max(n, 1):.3f}" for kind, (r, n) in score.items())
    return f"    held out, n = {asked}: all {right / asked:.3f} " + " ".join(kinds)
