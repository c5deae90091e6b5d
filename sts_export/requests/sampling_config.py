"""How the next token is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sts_export.errors import RequestError
from sts_export.requests.numbers import is_integer, is_number


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.  The default is greedy decoding, which ignores the other settings.

    Args:
        temperature: 0 is greedy; higher values flatten the distribution.
        top_k: sample among the k most likely tokens (and those that tie with the last of them); 0 is off.
        top_p: sample among the fewest most likely tokens whose probabilities reach top_p; 1 is off.
        seed: makes sampling repeatable; None draws a fresh one.
        min_p: sample among the tokens at least so probable as this share of the most likely one; 0 is off.

    Raises:
        RequestError: a value of the wrong kind or out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise RequestError(
                f"temperature must be a number of at least 0, not {self.temperature!r}; use 0 for greedy decoding",
                field="temperature",
            )
        if not is_integer(self.top_k) or self.top_k < 0:
            raise RequestError(
                f"top_k must be a whole number of at least 0, not {self.top_k!r}; use 0 to turn it off",
                field="top_k",
            )
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be above 0 and at most 1, not {self.top_p!r}; use 1 to turn it off", field="top_p")
        if self.seed is not None and (not is_integer(self.seed) or self.seed < 0):
            raise RequestError(
                f"seed must be a whole number of at least 0, not {self.seed!r}; leave it out for a random one",
                field="seed",
            )
        if not is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p must be a number from 0 to 1, not {self.min_p!r}; use 0 to turn it off", field="min_p")
