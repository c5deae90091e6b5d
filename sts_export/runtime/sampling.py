"""Choose the next token from the last position's logits; numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import BackendError, RequestError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.  The default is greedy decoding, which ignores the other settings.

    Args:
        temperature: 0 is greedy; higher values flatten the distribution.
        top_k: sample among the k most likely tokens (and those that tie with the last of them); 0 is off.
        top_p: sample among the fewest most likely tokens whose probabilities reach top_p; 1 is off.
        seed: makes sampling repeatable; None draws a fresh one.

    Raises:
        RequestError: a value of the wrong kind or out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise RequestError(
                f"temperature must be a number of at least 0, not {self.temperature!r}; use 0 for greedy decoding"
            )
        if not _is_integer(self.top_k) or self.top_k < 0:
            raise RequestError(f"top_k must be a whole number of at least 0, not {self.top_k!r}; use 0 to turn it off")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be above 0 and at most 1, not {self.top_p!r}; use 1 to turn it off")
        if self.seed is not None and (not _is_integer(self.seed) or self.seed < 0):
            raise RequestError(f"seed must be a whole number of at least 0, not {self.seed!r}; leave it out for a random one")


class Sampler:
    """Draws tokens one after another; its random state starts from the configuration's seed.

    Args:
        config: how to choose.
    """

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(None if config.seed is None else int(config.seed))

    def sample(self, logits: NDArray[Any]) -> int:
        """One token id from ``logits: [vocab]`` of any float type; greedy takes the lowest index among equal maxima.

        Raises:
            BackendError: logits of the wrong shape, or holding NaN or infinity.
        """
        scores = np.asarray(logits).astype(np.float64)
        if scores.ndim != 1 or scores.size == 0:
            raise BackendError(
                f"the engine returned logits of shape {list(scores.shape)}, not [vocab]; export the bundle again"
            )
        if not np.isfinite(scores).all():
            bad = int(np.count_nonzero(~np.isfinite(scores)))
            raise BackendError(
                f"the engine returned NaN or infinity in {bad} of {scores.size} logits; run it in a wider type (bf16 or fp32)"
            )
        if self._config.temperature == 0:
            return int(np.argmax(scores))
        probabilities = softmax(filter_scores(scores, self._config))
        cumulative = np.cumsum(probabilities)
        # side="right": a token of probability 0 repeats its left neighbour's sum and is never the first one above.
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def filter_scores(scores: NDArray[np.float64], config: SamplingConfig) -> NDArray[np.float64]:
    """Temperature, then top-k, then top-p, as transformers' logits warpers: [vocab] → [vocab], -inf where excluded.

    The result is shifted by a constant, which no probability depends on.
    """
    # The maximum is subtracted before the division: a tiny temperature must not overflow.
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / config.temperature
    if 0 < config.top_k < scores.size:
        kth_largest = np.partition(scores, -config.top_k)[-config.top_k]
        scores = np.where(scores < kth_largest, -np.inf, scores)
    if config.top_p < 1:
        ascending = np.argsort(scores, kind="stable")
        excluded = np.cumsum(softmax(scores[ascending])) <= 1 - config.top_p
        excluded[-1] = False
        scores[ascending[excluded]] = -np.inf
    return scores


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[vocab] → [vocab], summing to 1."""
    weights = np.exp(scores - scores.max())
    total: NDArray[np.float64] = weights / weights.sum()
    return total


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
