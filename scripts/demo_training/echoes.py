"""Text-only questions: the model says a name that it is told.

A real decoder has read text before it sees a picture.  Without any, a name in a question never reaches the last token of the
prompt, and the model cannot look for what it is asked about.
"""

from __future__ import annotations

import numpy as np

from sts_export.demo.questions import Question
from sts_export.demo.world import COLORS, SHAPES, WORDS

ECHOES = ("Say the word {}.", "Repeat {}.", "Say {}, please.")
NAMES = (*SHAPES, *COLORS)
# Names of things are said so often; the rest are words that can be read.
NAMES_SHARE = 0.8


def echoes(rng: np.random.Generator, count: int) -> list[Question]:
    """`count` questions about no picture."""
    return [_echo(rng) for _ in range(count)]


def _echo(rng: np.random.Generator) -> Question:
    names = NAMES if rng.random() < NAMES_SHARE else WORDS
    name = names[int(rng.integers(len(names)))]
    return Question("echo", ECHOES[int(rng.integers(len(ECHOES)))].format(name), name, 0)
