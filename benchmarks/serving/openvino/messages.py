"""What the process that speaks HTTP and the one that computes tell each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ask:
    """A request.

    Args:
        number: of its own.
        history: role and content of each message; a picture is where its tag is.
        pictures: uint8, height x width x 3, in the order of their tags.
        tokens: at most so many are generated.
        ignore_eos: go on after an end token.
    """

    number: int
    history: list[dict[str, str]]
    pictures: list[NDArray[np.uint8]]
    tokens: int
    ignore_eos: bool


@dataclass(frozen=True)
class Cancel:
    """Nobody reads this answer any more."""

    number: int


@dataclass(frozen=True)
class Piece:
    """Text that became certain; never empty."""

    number: int
    text: str


@dataclass(frozen=True)
class End:
    """The answer is complete: why, and the tokens of prompt and answer."""

    number: int
    reason: str
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Failure:
    """There is no answer."""

    number: int
    message: str


Event = Piece | End | Failure
