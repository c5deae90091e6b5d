"""Random crops for stages before the LLM, and what the tests' own float64 forms of them share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray


class Case(NamedTuple):
    """Random crops: features [crops, rows, width], candidates [crops, rows], K of each crop, and where numbers come from."""

    features: NDArray[Any]
    candidates: NDArray[np.bool_]
    keep: list[int]
    rng: np.random.Generator


def draw_case(data: st.DataObject, *, exact: bool, columns: int = 1, most_rows: int = 40) -> Case:
    """Crops of any size with any K up to their candidates, some with none.

    Args:
        exact: features are unit vectors along axes, few of them: cosines are 0 or 1, most choices are ties and all arithmetic
            is exact in float32 and float16.
        columns: the number of rows is a multiple of it.
    """
    crops = data.draw(st.integers(1, 4), label="crops")
    rows = columns * data.draw(st.integers(1, most_rows // columns), label="rows")
    counts = data.draw(st.lists(st.integers(0, rows), min_size=crops, max_size=crops), label="candidates")
    counts[0] = max(counts[0], 1)
    full = data.draw(st.lists(st.booleans(), min_size=crops, max_size=crops), label="keeps all")
    keep = [count if all_ else data.draw(st.integers(0, count), label="K") for count, all_ in zip(counts, full, strict=True)]
    dtype = data.draw(st.sampled_from([np.float32, np.float16]), label="dtype")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    candidates = np.array([rng.permutation(np.arange(rows) < count) for count in counts])
    features = vectors(rng, (crops, rows), exact=exact)
    return Case(features.astype(dtype), candidates, keep, rng)


def vectors(rng: np.random.Generator, shape: tuple[int, ...], *, exact: bool, width: int = 8) -> NDArray[np.float32]:
    """[*shape, width]; ``exact``: unit vectors along axes, few of them."""
    if exact:
        return np.eye(width, dtype=np.float32)[rng.integers(0, 4, shape)]
    return rng.standard_normal((*shape, width)).astype(np.float32)


def scores(rng: np.random.Generator, shape: tuple[int, ...], *, exact: bool) -> NDArray[np.float32]:
    """Like attention, from 0 to 1; ``exact``: with many ties."""
    return (rng.integers(0, 4, shape) / 4 if exact else rng.random(shape)).astype(np.float32)


def largest(score: NDArray[Any], among: NDArray[Any], count: int) -> list[int]:
    """The ``count`` rows of ``among`` with the largest score; ties go to the lowest row."""
    return sorted(among.tolist(), key=lambda row: (-score[row], row))[:count]


def cosines(x: NDArray[Any]) -> NDArray[np.float64]:
    """[n, n] of the rows of ``x``, in float64."""
    x = x.astype(np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)


def nearest(similarity: NDArray[np.float64], targets: list[int]) -> tuple[int, float]:
    """The first target most similar to the row that ``similarity`` is of, and how much more so than the next different one."""
    values = similarity[targets]
    best = float(values.max())
    others = values[values < best - 1e-9]
    return targets[int(np.argmax(values >= best - 1e-9))], best - float(others.max()) if len(others) else float("inf")
