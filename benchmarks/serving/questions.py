"""What clients ask: requests that have little in common, and the right answer to each."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sts_export import Pipeline
from sts_export.media.synthetic import synthetic_image

_PROMPTS = ("Where is it?", "What is the color of the largest thing in the picture?", "Describe the picture in detail.")


@dataclass(frozen=True)
class Asked:
    """A request: its answer has ``tokens`` tokens, whatever they are."""

    prompt: str
    picture: bytes
    tokens: int
    budget: str | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Of a streamed chat completion."""
        return {
            "model": model,
            "messages": [{"role": "user", "content": [_part(self.picture), {"type": "text", "text": self.prompt}]}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
            **({} if self.budget is None else {"budget": self.budget}),
        }


@dataclass(frozen=True)
class Question:
    """A request body, the text that is the right answer, and the tokens and streamed pieces that it has."""

    body: dict[str, Any]
    answer: str
    tokens: int
    pieces: int


def make_questions(count: int, new_tokens: int, budgets: Sequence[str | None] = (None,), seed: int = 0) -> list[Asked]:
    """Of mixed pictures, prompts, budgets and lengths from a quarter of ``new_tokens`` to all of them.

    ``budgets`` change nothing but the budgets: all contenders of a run are asked the same.
    """
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt = _PROMPTS[int(random.integers(len(_PROMPTS)))]
        most = int(random.integers(max(1, new_tokens // 4), new_tokens + 1))
        budget = budgets[int(random.integers(2)) % len(budgets)]
        made.append(Asked(prompt, _file(number % 6), most, budget))
    return made


def budgets_of(exported: str | None) -> list[str | None]:
    """The export's own and half of it, where it is a number."""
    return [None] if exported is None or exported.endswith("%") else [None, str(int(float(exported)) // 2)]


def pipeline_answers(pipeline: Pipeline, questions: Sequence[Asked]) -> list[str]:
    """Each asked alone, in process."""
    answers = []
    for asked in questions:
        options: dict[str, Any] = {"max_new_tokens": asked.tokens, "budget": asked.budget, "ignore_eos": True}
        answers.append(pipeline.generate(asked.prompt, asked.picture, **options).text)
    return answers


def _file(number: int) -> bytes:
    buffer = io.BytesIO()
    synthetic_image(number).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _part(file: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(file).decode()}}
