"""The score against loops over single numbers, and on features whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sts_export.analysis.tower import score
from sts_export.analysis.tower.score import consistency, nearest, ranks, shuffled_consistency


def slow_nearest(features: Any, count: int) -> list[list[int]]:
    """By the definition of the cosine, one pair at a time."""
    rows = [[float(value) for value in row] for row in features]
    found = []
    for i, row in enumerate(rows):
        cosines = []
        for j, other in enumerate(rows):
            dot = math.fsum(a * b for a, b in zip(row, other, strict=True))
            lengths = math.sqrt(math.fsum(a * a for a in row) * math.fsum(b * b for b in other))
            if i != j:
                cosines.append((-dot / lengths if lengths else 0.0, j))
        found.append([j for _, j in sorted(cosines)[:count]])
    return found


def slow_deviation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def slow_consistency(attention: list[float], neighbours: list[list[int]]) -> float:
    local = [slow_deviation([attention[i], *(attention[j] for j in near)]) for i, near in enumerate(neighbours)]
    return 1 - math.fsum(local) / len(local) / slow_deviation(attention)


def random(seed: int, tokens: int, width: int = 7) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    return numbers.normal(size=(tokens, width)).astype(np.float32), numbers.exponential(size=tokens).astype(np.float32)


@pytest.mark.parametrize(("tokens", "count"), [(2, 1), (6, 5), (23, 5), (40, 20)])
def test_score_is_that_of_loops(tokens: int, count: int) -> None:
    features, attention = random(tokens, tokens)
    neighbours = slow_nearest(features, count)
    assert nearest(features, count).tolist() == neighbours
    expected = slow_consistency([float(value) for value in attention], neighbours)
    assert consistency(attention, nearest(features, count)) == pytest.approx(expected, abs=1e-9)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = random(0, 31)
    whole = nearest(features, 9)
    monkeypatch.setattr(score, "_SIMILARITIES_AT_ONCE", 31 * 4)
    assert np.array_equal(nearest(features, 9), whole)


def test_neighbours_are_by_angle_and_of_equals_the_first() -> None:
    """Lengths do not count; a token without a direction is at a right angle to all."""
    features = np.array([[1, 0], [50, 0], [2, 0], [0, 1], [-1, 0], [0, 0]], np.float32)
    assert nearest(features, 3).tolist() == slow_nearest(features, 3)
    assert nearest(features, 3)[0].tolist() == [1, 2, 3]
    assert nearest(features, 2)[5].tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 4, 5])
def test_more_neighbours_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match="4 tokens have no"):
        nearest(np.eye(4, dtype=np.float32), count)


def clusters(size: int = 8) -> tuple[Any, Any]:
    """Four directions, and which one each token has."""
    which = np.arange(4 * size) % 4
    noise = np.random.default_rng(1).normal(scale=0.01, size=(len(which), 4))
    return (np.eye(4)[which] + noise).astype(np.float32), which


def test_attention_by_cluster_is_fully_consistent() -> None:
    features, which = clusters()
    attention = np.array([0.1, 0.2, 0.4, 0.3])[which]
    assert consistency(attention, nearest(features, 5)) == pytest.approx(1)
    assert shuffled_consistency(attention, nearest(features, 5)) < 0.3  # type: ignore[operator]


def test_opposites_among_neighbours_are_inconsistent() -> None:
    """Every neighbourhood spans the whole range: the deviation within is that over all."""
    pairs = np.repeat(np.eye(5), 2, axis=0).astype(np.float32)
    assert consistency(np.tile([0.0, 1.0], 5), nearest(pairs, 1)) == pytest.approx(0)


@pytest.mark.parametrize("count", [5, 10, 20])
def test_random_attention_is_near_nothing(count: int) -> None:
    """What is left is the bias of a deviation of k + 1 numbers, 1 - sqrt(k / (k + 1)) c4(k + 1) for normal ones."""
    numbers = np.random.default_rng(2)
    features, attention = numbers.normal(size=(600, 16)).astype(np.float32), numbers.normal(size=600)
    c4 = math.sqrt(2 / count) * math.gamma((count + 1) / 2) / math.gamma(count / 2)
    bias = 1 - math.sqrt(count / (count + 1)) * c4
    assert consistency(attention, nearest(features, count)) == pytest.approx(bias, abs=0.03)
    assert shuffled_consistency(attention, nearest(features, count)) == pytest.approx(bias, abs=0.03)


def test_few_tokens_with_most_of_the_attention_look_consistent_by_chance() -> None:
    features, _ = random(3, 400)
    attention = np.full(400, 0.001)
    attention[::100] = 1
    shuffled = shuffled_consistency(attention, nearest(features, 5))
    assert shuffled is not None and shuffled > 0.7


def test_shuffles_are_the_same_every_time() -> None:
    features, attention = random(4, 50)
    near = nearest(features, 5)
    assert shuffled_consistency(attention, near) == shuffled_consistency(attention, near)


@pytest.mark.parametrize("attention", [[0.25] * 6, [0.0] * 6, [1 + 1e-8 * i for i in range(6)], [math.nan] * 6])
def test_equal_attention_has_no_score(attention: list[float]) -> None:
    near = nearest(random(5, 6)[0], 3)
    assert consistency(np.array(attention), near) is None
    assert shuffled_consistency(np.array(attention), near) is None


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(7, 40), st.floats(0.1, 100), st.floats(-5, 5))
def test_scale_and_order_do_not_matter(seed: int, tokens: int, factor: float, offset: float) -> None:
    features, attention = random(seed, tokens)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.sort(unit @ unit.T, axis=1)[:, ::-1]  # the token itself first
    assume((cosines[:, 5] - cosines[:, 6]).min() > 1e-5)  # rounding decides nothing
    value = consistency(attention, nearest(features, 5))
    assert value is not None and value <= 1
    scaled = attention.astype(np.float64) * factor + offset
    assert consistency(scaled, nearest(features * 3, 5)) == pytest.approx(value, abs=1e-6)
    order = np.random.default_rng(seed).permutation(tokens)
    assert consistency(attention[order], nearest(features[order], 5)) == pytest.approx(value, abs=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_ranks(attention: list[int]) -> None:
    order = sorted(range(len(attention)), key=lambda token: (attention[token], token))
    placed = ranks(np.array(attention))
    assert np.argsort(placed).tolist() == order
    assert placed.min() == 0 and placed.max() == (1 if len(attention) > 1 else 0)
