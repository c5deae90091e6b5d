"""What LLaVA-1.5 was asked to, and so is every model here (LLaVA's docs/Evaluation.md and scripts/v1_5/eval)."""

from __future__ import annotations

from collections.abc import Sequence

ONE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def with_options(question: str, options: Sequence[str]) -> str:
    """The question, a line for each option with its letter, and what to answer with."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, LETTER])
