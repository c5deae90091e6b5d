"""The world of the demo model: held-out scenes, exact answers.  Nothing is read from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from PIL.Image import Image

from sts_export.demo.held_out import held_out
from sts_export.demo.world import HELD_OUT_SEEDS
from sts_export.evaluation.questions import PercentRight, Question


@dataclass(frozen=True)
class _Asked:
    images: tuple[Image, ...]
    kind: str
    text: str
    answer: str


@lru_cache(maxsize=16)
def _scene(index: int) -> list[_Asked]:
    images, questions = held_out(index)
    return [_Asked(images[: question.pictures], question.kind, question.text, question.answer) for question in questions]


class Demo(PercentRight):
    """Held-out scenes in their order, all questions of each."""

    name = "demo"
    summary = "the demo model's world, built in"
    layout = ""
    max_new_tokens = 16
    usual_limit: int | None = 2000

    def digest(self, data: Path) -> str:
        """Of the first scene: another world draws another one."""
        digest = hashlib.sha256()
        for asked in _scene(0):
            digest.update(repr((asked.kind, asked.text, asked.answer)).encode())
            for image in asked.images:
                digest.update(image.tobytes())
        return digest.hexdigest()

    def questions(self, data: Path) -> Iterator[Question]:
        for index in range(len(HELD_OUT_SEEDS)):
            for number, asked in enumerate(_scene(index)):
                # Drawn again when they are wanted: thousands of scenes would fill the memory.
                pictures = tuple(partial(_picture, index, number, place) for place in range(len(asked.images)))
                yield Question(f"{index}-{number}", asked.text, pictures, (asked.answer,), asked.kind)

    def score(self, question: Question, answer: str) -> float:
        return float(answer.strip() == question.truth[0])


def _picture(index: int, number: int, place: int) -> Image:
    return _scene(index)[number].images[place]


TASK = Demo()
