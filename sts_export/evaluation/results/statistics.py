"""Intervals and tests, in closed form or by seeded draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # of a two-sided 95 % interval
_DRAWS = 1000
Interval = tuple[float, float]


def wilson(right: int, asked: int, z: float = _Z) -> Interval:
    """Confidence interval of a proportion (Wilson 1927), 95 % unless ``z`` says otherwise; asked >= 1."""
    share, square = right / asked, z * z
    middle = share + square / (2 * asked)
    half = z * math.sqrt(share * (1 - share) / asked + square / (4 * asked * asked))
    scale = 1 + square / asked
    # At 0 and 1 one end is exact, which rounding would miss.
    low = 0.0 if right == 0 else (middle - half) / scale
    return low, 1.0 if right == asked else (middle + half) / scale


def bootstrap(
    strata: Mapping[str, NDArray[np.float64]],
    figure: Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.float64]],
    *,
    draws: int = _DRAWS,
    seed: int = 0,
) -> Interval:
    """95 % percentile interval of a figure that follows from sums (Efron 1979).

    Args:
        strata: [rows, columns] each; rows are drawn with replacement within their stratum.
        figure: sums [draws, columns] of each stratum -> [draws].
    """
    rng = np.random.default_rng(seed)
    sums = {name: np.stack([_resampled(rng, rows) for _ in range(draws)]) for name, rows in strata.items()}
    low, high = np.quantile(figure(sums), [0.025, 0.975])
    return float(low), float(high)


def _resampled(rng: np.random.Generator, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
    total: NDArray[np.float64] = counts @ rows
    return total


def mean_interval(values: Sequence[float]) -> Interval:
    """Of a mean: Wilson's where every value is 0 or 1, else by draws."""
    if all(value in (0, 1) for value in values):
        return wilson(int(sum(values)), len(values))
    rows = np.array([values, np.ones(len(values))], np.float64).T
    return bootstrap({"all": rows}, lambda sums: sums["all"][..., 0] / sums["all"][..., 1])


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of pairs of which one is right and the other wrong (McNemar 1947, as a binomial test)."""
    pairs = only_first + only_second
    tail = sum(math.comb(pairs, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**pairs))
