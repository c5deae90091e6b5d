"""What every contender of a comparison runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Greedy tokens, end tokens ignored.

    Args:
        picture: file of the one picture.
        device: as torch names it.
        dtype: of weights and activations.
    """

    picture: str
    prompt: str
    new_tokens: int
    device: str
    dtype: str
