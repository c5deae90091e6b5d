"""What a stage before the LLM chose and merged, against what it should have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tests.pruning.stage1.stage_graphs import quota_of


class Chosen(NamedTuple):
    """What a stage chose of each crop, within its quota.

    rows: the chosen rows in order; features: [crops, rows, width], joined: [crops, rows] and last: the rows among ``rows`` that
    stand behind all others; the stage's own form of them is checked.
    """

    rows: list[list[int]]
    features: NDArray[Any] | None
    joined: NDArray[np.int64] | None
    last: list[list[int]] | None


def choose(
    stage: ort.InferenceSession,
    features: NDArray[Any],
    keep: list[int],
    candidates: NDArray[np.bool_] | None = None,
    needed: Mapping[str, NDArray[Any]] | None = None,
) -> Chosen:
    """What the stage chooses of crops that keep so many."""
    crops, rows = features.shape[:2]
    candidates = np.ones((crops, rows), bool) if candidates is None else candidates
    names = [output.name for output in stage.get_outputs()]
    results = stage.run(None, {"features": features, "candidates": candidates, "quota": quota_of(keep), **(needed or {})})
    found = dict(zip(names, results, strict=True))
    chosen = found["out_chosen"]
    assert chosen.dtype == np.int64 and chosen.shape == (crops, max(*keep, 1))
    assert ((chosen >= 0) & (chosen <= rows)).all()
    kept = [each[:count].tolist() for each, count in zip(chosen, keep, strict=True)]
    last = found.get("out_last")
    behind = None
    if last is not None:
        behind = [sorted(np.array(rows)[late[: len(rows)]].tolist()) for rows, late in zip(kept, last, strict=True)]
    return Chosen(kept, found.get("out_features"), found.get("out_joined"), behind)


class Expected(NamedTuple):
    """What one crop should give; ``margin``: how clear the least clear choice between floats was."""

    rows: list[int]
    features: NDArray[np.float64] | None = None
    joined: list[int] | None = None
    last: Sequence[int] = ()
    margin: float = float("inf")


def same(found: Chosen, expected: Sequence[Expected], features: NDArray[Any]) -> None:
    """Chosen rows as sets; features to 1e-5 of the largest; joined rows; and those behind all others."""
    assert [sorted(rows) for rows in found.rows] == [sorted(each.rows) for each in expected]
    merges = expected[0].features is not None
    assert (found.features is not None) == merges and (found.joined is not None) == merges
    if found.features is not None and found.joined is not None:
        assert found.features.dtype == features.dtype
        np.testing.assert_array_equal(found.joined, [each.joined for each in expected])
        wanted = np.array([each.features for each in expected])
        # A result in float16 is rounded once.
        bound = (1e-5 if features.dtype == np.float32 else 1e-3) * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(found.features.astype(np.float64), wanted, rtol=0, atol=bound)
    if found.last is not None:
        assert found.last == [sorted(each.last) for each in expected]
