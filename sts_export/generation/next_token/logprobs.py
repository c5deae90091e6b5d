"""Log-probabilities of a generated token and of those that it was chosen among; numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, of the model's own: the softmax over all its logits, in float64, before penalties,
    biases, grammars, temperature and filters.  vLLM calls these ``raw_logprobs``, its default.

    Args:
        token_id: the token that was generated.
        logprob: its own.
        top: (token id, logprob) of the most likely tokens, the first of which is the most likely; of equal ones the lower id
            goes first.  The generated token is not always among them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: NDArray[Any], token: int, most: int) -> TokenLogprobs:
    """Of ``token``, and of the ``most`` most likely ones.

    Args:
        logits: [vocab] of any float type, all finite.
        token: below vocab.
        most: 0 for the token's own alone; more than vocab are as many as vocab.
    """
    scores = np.asarray(logits, np.float64)
    largest = scores.max()
    total = largest + np.log(np.exp(scores - largest).sum())
    top = [(index, float(scores[index] - total)) for index in most_likely(scores, most)]
    return TokenLogprobs(token, float(scores[token] - total), tuple(top))


def most_likely(scores: NDArray[np.float64], most: int) -> list[int]:
    """Places of the ``most`` largest of ``scores: [vocab]``, the largest first; of equal ones the lower place."""
    most = min(most, scores.size)
    if most == 0:
        return []
    least = np.partition(scores, -most)[-most]
    places = np.flatnonzero(scores >= least)  # more than asked for where several tie with the last
    descending = places[np.argsort(-scores[places], kind="stable")]
    return descending[:most].tolist()  # type: ignore[no-any-return]
