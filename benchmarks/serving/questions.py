"""What clients ask: requests that have little in common, and the pipeline's own answer to each."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from sts_export import Pipeline
from sts_export.media.synthetic import synthetic_image

_PROMPTS = ("Where is it?", "What is the color of the largest thing in the picture?", "Describe the picture in detail.")


@dataclass(frozen=True)
class Question:
    """A request body, and the text that is the right answer."""

    body: dict[str, Any]
    answer: str
    tokens: int


def questions(pipeline: Pipeline, model: str, count: int, new_tokens: int, seed: int = 0) -> list[Question]:
    """Of mixed pictures, prompts, budgets and lengths from a quarter of ``new_tokens`` to all of them; each asked alone."""
    random = np.random.default_rng(seed)
    exported = pipeline.manifest.pruning.budget
    budgets = [None] if exported is None or exported.endswith("%") else [None, str(int(float(exported)) // 2)]
    made = []
    for number in range(count):
        file = _file(number % 6)
        prompt = _PROMPTS[int(random.integers(len(_PROMPTS)))]
        most = int(random.integers(max(1, new_tokens // 4), new_tokens + 1))
        budget = budgets[int(random.integers(len(budgets)))]
        alone = pipeline.generate(prompt, file, max_new_tokens=most, budget=budget, ignore_eos=True)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": [_part(file), {"type": "text", "text": prompt}]}],
            "max_tokens": most,
            "ignore_eos": True,
            "stream": True,
            **({} if budget is None else {"budget": budget}),
        }
        made.append(Question(body, alone.text, len(alone.token_ids)))
    return made


def _file(number: int) -> bytes:
    buffer = io.BytesIO()
    synthetic_image(number).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _part(file: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(file).decode()}}
