"""DivPrune against loops over pairs and cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sts_export.reference import Crop, find_stage1
from tests.reference.pruning.crops import crop_of

STAGE = find_stage1("divprune")


def at(*degrees: float) -> Tensor:
    """Vectors of different lengths in the plane."""
    angles = [math.radians(degree) for degree in degrees]
    lengths = [0.5 + 3 * number for number in range(len(degrees))]
    pairs = zip(angles, lengths, strict=True)
    return torch.tensor([[length * math.cos(angle), length * math.sin(angle)] for angle, length in pairs])


def order(crop: Crop, keep: int) -> list[int]:
    return STAGE(crop, keep).order.tolist()


def test_by_hand() -> None:
    # Nearest neighbours: 10, 10, 80, 20, 20 degrees away. From 90: 90, 80, 90, 110. From 90 and 200: 90, 80, 20.
    crop = crop_of(at(0, 10, 90, 180, 200))
    assert order(crop, 5) == [2, 4, 0, 3, 1]
    margins = STAGE(crop, 2).margins.tolist()
    cosine = [math.cos(math.radians(degree)) for degree in (80, 20, 110, 90)]
    assert margins == pytest.approx([cosine[1] - cosine[0], cosine[3] - cosine[2]], abs=1e-6)


def test_distances_are_of_what_the_llm_takes() -> None:
    features = at(0, 10, 90, 180, 200)
    swapped = crop_of(features, project=lambda rows: rows @ torch.tensor([[0.01, 0.0], [0.0, 1.0]]))
    assert order(swapped, 1)[0] in (3, 4)  # now 10 is close to 90


def test_one_token_duplicates_and_zeros() -> None:
    assert order(crop_of(torch.ones(1, 3)), 1) == [0]
    assert order(crop_of(torch.ones(5, 3)), 4) == [0, 1, 2, 3]
    assert order(crop_of(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])), 4) == [0, 2, 1, 3]
    zero = crop_of(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1]]))  # of distance 1 to everything
    assert order(zero, 3) == [1, 0, 2]
    assert STAGE(crop_of(torch.ones(5, 3)), 4).margins.max() == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.data())
def test_each_choice_is_the_farthest_of_those_left(count: int, seed: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, count))
    features = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    features[0] = features[count // 2]
    chosen, rows = order(crop_of(features), keep), features.double().tolist()

    def distance(i: int, j: int) -> float:
        product: float = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return 1 - product / math.dist(rows[i], [0] * 4) / math.dist(rows[j], [0] * 4)

    assert len(set(chosen)) == keep
    for step, token in enumerate(chosen):
        values = {
            i: min(distance(i, j) for j in (chosen[:step] or range(count)) if j != i)
            for i in range(count)
            if i not in chosen[:step]
        }
        assert values[token] >= max(values.values()) - 1e-6
