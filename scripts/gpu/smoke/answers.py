"""What engines answer, beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """To one question.

    Args:
        kept: indices that survived stage 1, picture by picture, and stage 2.
    """

    tokens: list[int]
    kept: list[list[int]]


def compare(found: Sequence[Answer], expected: Sequence[Answer]) -> dict[str, Any]:
    """How many answers are equal ``of`` how many, in tokens and in kept indices, and the first that differs."""
    pairs = list(zip(found, expected, strict=True))
    differing = [index for index, (ours, theirs) in enumerate(pairs) if ours != theirs]
    return {
        "of": len(pairs),
        "equal_tokens": sum(ours.tokens == theirs.tokens for ours, theirs in pairs),
        "equal_kept": sum(ours.kept == theirs.kept for ours, theirs in pairs),
        "first_difference": _difference(differing[0], *pairs[differing[0]]) if differing else None,
    }


def is_equal(comparison: Mapping[str, Any]) -> bool:
    """Every answer, and there were some."""
    return bool(comparison["of"] and comparison["of"] == comparison["equal_tokens"] == comparison["equal_kept"])


def _difference(question: int, ours: Answer, theirs: Answer) -> dict[str, Any]:
    return {"question": question, "tokens": [ours.tokens, theirs.tokens], "kept_equal": ours.kept == theirs.kept}
