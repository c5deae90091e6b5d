"""Repulsion against triple loops and hand-checked cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sts_export.pruning.stage1.repulsion import Anchor
from sts_export.reference import repulsion_select, repulsion_trace

torch.set_num_threads(1)


def naive_repulsion(rows: list[list[float]], keep: int, first: int, number: type, epsilon: float = 1e-6) -> list[int]:
    """Equations 3 to 5 with loops over scalars of type ``number``; returns the order of the choices."""
    chosen = [first]
    while len(chosen) < keep:
        best, best_potential = -1, number(0)
        for i in range(len(rows)):
            potential = number(0)
            for j in chosen:
                distance = number(sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)))
                potential = number(potential + number(1) / number(distance + number(epsilon)))
            if i not in chosen and (best < 0 or potential < best_potential):
                best, best_potential = i, potential
        chosen.append(best)
    return chosen


def nearest_to_mean(rows: list[list[float]]) -> int:
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    distances = [sum((a - b) ** 2 for a, b in zip(row, mean, strict=True)) for row in rows]
    return distances.index(min(distances))


@pytest.mark.parametrize("seed", range(12))
def test_repulsion_equals_a_triple_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20 + seed, 5, generator=generator) * 3
    keep = 2 + seed
    trace = repulsion_trace(features, keep)
    assert trace.margins.min() > 1e-5, "choose another seed: rounding decides here"
    rows = features.double().tolist()
    assert trace.order.tolist() == naive_repulsion(rows, keep, nearest_to_mean(rows), float)
    assert repulsion_select(features, keep).tolist() == sorted(trace.order.tolist())


@pytest.mark.parametrize("seed", range(8))
def test_repulsion_with_many_ties_and_duplicates(seed: int) -> None:
    """Small integers: distances are exact, so float32 loops must agree even where everything is tied."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(0, 2 + seed % 3, (25, 3), generator=generator)
    rows = features.tolist()
    order = repulsion_trace(features.float(), 20, anchor="first").order.tolist()
    assert order == naive_repulsion(rows, 20, 0, np.float32)


def test_repulsion_by_hand() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])  # mean 3.2
    trace = repulsion_trace(line, 3)
    # Anchor 3 (distance 0.04). Then 10 has the smallest 1/d. Then 0: 1/9 + 1/100 < 1: 1/4 + 1/81 < 2: 1 + 1/64.
    assert trace.order.tolist() == [3, 4, 0]
    assert trace.margins[1].item() == pytest.approx(49 / 9 - 1, rel=1e-5)
    assert repulsion_select(line, 3).tolist() == [0, 3, 4]
    assert repulsion_select(line, 2, anchor="first").tolist() == [0, 4]
    saliency = torch.tensor([0.1, 0.4, 0.4, 0.0, 0.1])  # tie: 1 wins; the farthest from 1 is 10
    assert repulsion_trace(line, 2, anchor="saliency", saliency=saliency).order.tolist() == [1, 4]


def test_repulsion_of_equal_tokens_takes_the_lowest_index() -> None:
    same = torch.full((6, 4), 0.7)
    assert repulsion_trace(same, 4).order.tolist() == [0, 1, 2, 3]
    two = torch.tensor([[1.0], [5.0], [1.0], [5.0], [1.0]])  # mean 2.6: anchor 0, then a 5, then the other two are tied
    trace = repulsion_trace(two, 3)
    assert trace.order.tolist() == [0, 1, 2]
    assert trace.margins.tolist()[:2] == [0.0, 0.0]


@pytest.mark.parametrize("anchor", ["mean", "first", "saliency"])
def test_repulsion_keeps_everything_that_fits(anchor: Anchor) -> None:
    features = torch.randn(7, 3)
    for keep in (7, 8):
        assert repulsion_select(features, keep, anchor=anchor, saliency=torch.rand(7)).tolist() == list(range(7))
    assert sorted(repulsion_trace(features, 9, anchor=anchor, saliency=torch.rand(7)).order.tolist()) == list(range(7))
    assert repulsion_select(features, 1, anchor=anchor, saliency=torch.rand(7)).shape == (1,)


def test_repulsion_of_half_precision_features_far_from_zero() -> None:
    """Where a Gram matrix in the features' type would cancel to nothing."""
    features = (1000 + torch.arange(6).float()[:, None] ** 1.5).to(torch.float16)
    rows = features.double().tolist()
    assert repulsion_trace(features, 4).order.tolist() == naive_repulsion(rows, 4, nearest_to_mean(rows), float)


def test_repulsion_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="keep 0"):
        repulsion_select(torch.zeros(3, 2), 0)
    with pytest.raises(ValueError, match="finite"):
        repulsion_select(torch.tensor([[1.0], [float("nan")]]), 1)
    with pytest.raises(ValueError, match="saliency"):
        repulsion_select(torch.zeros(3, 2), 1, anchor="saliency")
