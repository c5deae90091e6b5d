"""Which questions a training sequence holds: about one picture, and text-only ones.

In the text-only ones the model says a name that it is told.  A real decoder has read text before it sees a picture.  Without
any, a name in a question never reaches the last token of the prompt, and the model cannot look for what it is asked about.
"""

from __future__ import annotations

import numpy as np

from sts_export.demo.questions import Question, ask
from sts_export.demo.world import COLORS, SHAPES, WORDS, Scene

# At most so many of a kind: the harder a kind, the more often it is practised.
LIMITS = {"color": 2, "shape": 2, "position": 4, "count": 2, "presence": 3, "reading": 1, "comparison": 2}
# Some positions are asked for by side alone.  "left" is the second word of an answer such as "top left": that it stands in the
# picture's features is learned only slowly where nothing asks for it first.
SIDES_SHARE = 0.25
SIDES = ("Is the {0} on the left or on the right?", "On which side is the {0}?")


def practice(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about one picture for a training sequence."""
    left, chosen = dict(LIMITS), []
    for question in dict.fromkeys(ask(scene, rng, per_kind=max(LIMITS.values()))):
        if left[question.kind]:
            left[question.kind] -= 1
            chosen.append(question)
    return [_side(question, rng) if rng.random() < SIDES_SHARE else question for question in chosen]


def _side(question: Question, rng: np.random.Generator) -> Question:
    """The same about the side, if the question is for a position."""
    if question.kind != "position":
        return question
    subject = question.text.partition(" the ")[2].rstrip("?")
    return Question("position", SIDES[int(rng.integers(len(SIDES)))].format(subject), question.answer.split()[1])


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
