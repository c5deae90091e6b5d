"""The two selections in numpy, written from the equations, and proofs that rounding cannot decide about an input.

Stage 1.  A kernel sums squared differences in float32, adds epsilon, takes the reciprocal and sums potentials: all terms are
positive, so every potential is within a relative error of ``DELTA`` per rounding of the true one, whatever the input.  A choice
whose runner-up is further away than twice that is *clear*: every correct float32 implementation makes it.

Stage 2.  The same for scores; the error of the logits is bounded by the sum of the absolute products.

Rows that repeat another one bit by bit tie exactly in any implementation that treats all rows alike; the lowest index wins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDING = 2.0**-24


class Greedy(NamedTuple):
    """chosen: [steps], clear: how many of the first choices are provably right."""

    chosen: list[int]
    clear: int


def repulsion(features: NDArray[Any], first: int, steps: int, candidates: NDArray[np.bool_], epsilon: float) -> Greedy:
    """Equations 3 to 5 in float64 for one crop [rows, width]; as many steps as there are candidates, at most."""
    x = features.astype(np.float64)
    _, kind = np.unique(x, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    left = candidates.copy()
    potential = np.zeros(len(x))
    chosen, clear = [first], None
    left[first] = False
    epsilon = float(np.float32(epsilon))
    while len(chosen) < steps and left.any():
        potential += 1.0 / (((x - x[chosen[-1]]) ** 2).sum(axis=1) + epsilon)
        open_potential = np.where(left, potential, np.inf)
        winner = int(np.argmin(open_potential))
        error = (x.shape[1] + len(chosen) + 16) * ROUNDING
        rivals = np.flatnonzero(left & (potential <= potential[winner] * (1 + 2.1 * error)))
        if clear is None and (kind[rivals] != kind[winner]).any():
            clear = len(chosen)
        winner = int(rivals[kind[rivals] == kind[winner]].min())
        chosen.append(winner)
        left[winner] = False
    return Greedy(chosen, len(chosen) if clear is None else clear)


def exact_repulsion(features: NDArray[Any], first: int, steps: int, candidates: NDArray[np.bool_], epsilon: float) -> list[int]:
    """The same where every squared distance is exact in float32 (small integers): potentials are then defined to the last bit,
    as float32 sums in the order of choice, and no choice is excused."""
    x = features.astype(np.float64)
    potential = np.zeros(len(x), np.float32)
    potential[~candidates] = np.inf
    chosen = [first]
    for _ in range(steps - 1):
        squared = ((x - x[chosen[-1]]) ** 2).sum(axis=1)
        assert (squared == squared.astype(np.float32)).all() and (np.abs(x) <= 4096).all()
        potential += np.float32(1) / (squared.astype(np.float32) + np.float32(epsilon))
        potential[chosen] = np.inf
        chosen.append(int(np.argmin(potential)))
    return chosen


class GramCase(NamedTuple):
    """features: [2, rows, width]; first: [2]; candidates: [2, rows]."""

    features: NDArray[Any]
    first: list[int]
    steps: int
    candidates: NDArray[np.bool_]


def exact_gram_case(rng: np.random.Generator, dtype: Any) -> GramCase:
    """Features whose Gram matrix around the mean is exact: integers and their negatives, so that the mean is 0."""
    half, width = int(rng.integers(1, 24)), int(rng.integers(1, 24))
    features = rng.integers(-3, 4, (2, half, width))
    features = np.concatenate([features, -features], axis=1)[:, rng.permutation(2 * half)].astype(dtype)
    candidates = rng.random((2, 2 * half)) < rng.choice([0.5, 1.0])
    return GramCase(features, rng.integers(0, 2 * half, 2).tolist(), int(rng.integers(1, 2 * half + 1)), candidates)


class TopK(NamedTuple):
    """kept_rows: [survivors], last_row, clear: whether the winners are provably right."""

    kept_rows: list[int]
    last_row: int
    clear: bool


def last_token_topk(
    query: NDArray[Any], key: NDArray[Any], mask: NDArray[np.int64], visual: NDArray[np.bool_], keep: int, scale: float
) -> TopK:
    """Equations 6 and 7 in float64 for one request: [heads, rows, d], [kv_heads, rows, d], [rows], [rows].

    All visual rows of the request count; there are at least ``keep``, or none.
    """
    heads, rows, width = query.shape
    last = int(np.flatnonzero(mask).max(initial=0))
    allowed = (np.arange(rows) <= last) & (mask != 0)
    asked = query[:, last].astype(np.float64)
    keys = key.astype(np.float64).repeat(heads // len(key), axis=0)
    scale = float(np.float32(scale))
    logits = np.einsum("hd,hsd->hs", asked, keys) * scale
    error = (width + 4) * ROUNDING * abs(scale) * np.einsum("hd,hsd->hs", np.abs(asked), np.abs(keys))
    logits = np.where(allowed, logits, -np.inf) if allowed.any() else np.zeros_like(logits)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)

    positions = np.flatnonzero(visual)
    order = positions[np.argsort(-scores[positions], kind="stable")]
    winners, clear = order[:keep], True
    if len(order) > keep:
        worst, best = scores[order[keep - 1]], scores[order[keep]]
        relative = 2 * float(error[:, allowed].max(initial=0.0)) + (rows + heads + 64) * ROUNDING
        least, most = best * (1 - 2.1 * relative), worst * (1 + 2.1 * relative)
        band = positions[(scores[positions] >= least) & (scores[positions] <= most)]
        same = (keys[:, band] == keys[:, band[:1]]).all() and (allowed[band] == allowed[band[0]]).all()
        # Masked rows score exactly 0; below 1e-30 float32 loses digits.
        separated = worst > best * (1 + 4.2 * relative) and worst > 1e-30
        clear = bool(separated or same or not allowed[band].any())
    survives = ~visual
    survives[winners] = True
    kept = np.flatnonzero(survives)
    return TopK(kept.tolist(), int((kept < last).sum()), clear)
