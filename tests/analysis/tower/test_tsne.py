"""Maps are the same every time, and keep what is together together."""

from __future__ import annotations

import numpy as np
import pytest

from sts_export.analysis.tower.tsne import on_a_plane

pytest.importorskip("sklearn", reason="scikit-learn is absent: it comes with the extra analysis")


def test_the_same_every_time_and_clusters_apart() -> None:
    numbers = np.random.default_rng(0)
    which = np.arange(60) % 3
    features = (np.eye(3)[which] + numbers.normal(scale=0.02, size=(60, 3))).astype(np.float32)
    features *= numbers.uniform(0.1, 10, size=(60, 1)).astype(np.float32)  # only directions count
    places = on_a_plane(features)
    assert places is not None and places.shape == (60, 2) and np.isfinite(places).all()
    again = on_a_plane(features)
    assert again is not None and np.array_equal(places, again)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (which[distance.argmin(axis=1)] == which).all()


@pytest.mark.parametrize("tokens", [5, 6, 20])
def test_few_tokens(tokens: int) -> None:
    """The perplexity stays below their number."""
    places = on_a_plane(np.random.default_rng(1).normal(size=(tokens, 4)).astype(np.float32))
    assert places is not None and np.isfinite(places).all()


def test_nothing_to_map() -> None:
    assert on_a_plane(np.eye(4, dtype=np.float32)) is None
    assert on_a_plane(np.ones((50, 8), np.float32)) is None
    assert on_a_plane(np.zeros((50, 8), np.float32)) is None
