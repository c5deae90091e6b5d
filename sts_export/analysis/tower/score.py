"""KNN Consistency Score: whether tokens that look alike to a layer get the same attention in it.

Source: STS, arXiv 2606.03569, section 3.1 and appendix A.1.  docs/analysis.md says what that leaves open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SIMILARITIES_AT_ONCE = 1 << 24
_ROUNDING = 1e-6  # relative spread of float32 scores that are the same but for rounding
_SHUFFLES = 10


def nearest(features: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The nearest neighbours of every token by cosine, nearest first; of equally near ones the first in reading order.

    Args:
        features: [tokens, C].
        count: from 1 to tokens - 1.

    Returns:
        [tokens, count] int64, without the token itself.
    """
    tokens = len(features)
    if not 1 <= count < tokens:
        raise ValueError(f"{tokens} tokens have no {count} neighbours each")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    found = np.empty((tokens, count), np.int64)
    for first in range(0, tokens, block := max(1, _SIMILARITIES_AT_ONCE // tokens)):
        rows = unit[first : first + block]
        distance = -(rows @ unit.T)
        distance[np.arange(len(rows)), np.arange(first, first + len(rows))] = np.inf
        found[first : first + block] = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return found


def consistency(attention: NDArray[np.floating], neighbours: NDArray[np.int64]) -> float | None:
    """1 - (mean over tokens of the deviation within the neighbourhood) / (deviation over all tokens).

    A neighbourhood is the token and its neighbours; deviations are of the population.

    Args:
        attention: [tokens].
        neighbours: [tokens, k], of :func:`nearest`.

    Returns:
        at most 1; None where all tokens have the same attention.
    """
    scores = attention.astype(np.float64)
    overall = scores.std()
    if not overall > _ROUNDING * np.abs(scores).max():
        return None
    around = np.concatenate([scores[:, None], scores[neighbours]], axis=1)
    return float(1 - around.std(axis=1).mean() / overall)


def shuffled_consistency(attention: NDArray[np.floating], neighbours: NDArray[np.int64]) -> float | None:
    """The score of the same attention shuffled among the tokens: mean of ten shuffles, the same every time.

    It is far above 0 where few tokens have most of the attention: most neighbourhoods hold none of them.
    """
    random = np.random.default_rng(0)
    scores = [consistency(random.permutation(attention), neighbours) for _ in range(_SHUFFLES)]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


def ranks(attention: NDArray[np.floating]) -> NDArray[np.float64]:
    """[tokens] from 0, the least attention, to 1, the most; equal ones in reading order."""
    order = np.argsort(attention, kind="stable")
    places = np.empty(len(order), np.float64)
    places[order] = np.linspace(0, 1, len(order))
    return places
