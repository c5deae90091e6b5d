"""CDPruner against determinants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sts_export.errors import PromptError
from sts_export.reference import find_stage1
from tests.reference.pruning.crops import crop_of

STAGE: Any = find_stage1("cdpruner")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(features: Tensor, picture: Tensor, projection: Tensor, text: Tensor, weight: float) -> np.ndarray[Any, Any]:
    """r_i S_ij r_j by loops."""

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / max(float(np.linalg.norm(a)), 1e-12) / max(float(np.linalg.norm(b)), 1e-12))

    def raw(rows: Tensor) -> list[float]:
        projected, words = (rows @ projection).double().numpy(), text.double().numpy()
        return [-sum(cosine(row, word) for word in words) / len(words) for row in projected]

    low, high = min(raw(picture)), max(raw(picture))
    r = [1 - weight + weight * (value - low) / (high - low + 1e-6) for value in raw(features)]
    rows = features.double().numpy()
    return np.array([[r[i] * cosine(a, b) * r[j] for j, b in enumerate(rows)] for i, a in enumerate(rows)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.9]), st.data())
def test_each_choice_makes_the_largest_determinant(count: int, seed: int, weight: float, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, min(count, 5)))
    picture, projection, text = drawn(seed, count + 4, 12), drawn(seed + 1, 12, 6), drawn(seed + 2, 3, 6)
    features = picture[2 : 2 + count]
    crop = crop_of(features, picture=picture, project=lambda rows: rows @ projection, text=text)
    kernel = kernel_of(features, picture, projection, text, weight)
    chosen = STAGE(crop, keep, relevance_weight=weight).order.tolist()
    assert len(set(chosen)) == keep
    for step, token in enumerate(chosen):
        sets = {i: [*chosen[:step], i] for i in range(count) if i not in chosen[:step]}
        determinants = {i: float(np.linalg.det(kernel[np.ix_(own, own)])) for i, own in sets.items()}
        assert determinants[token] >= max(determinants.values()) * (1 - 1e-5) - 1e-12


def test_by_hand() -> None:
    """Relevance is minus the cosine: the token least like the text counts most, as in the public code."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    crop = crop_of(features, text=torch.tensor([[2.0, 0.0]]))
    # r: 0, 1/2, 1 in [0, 1]; with weight 1/2: 1/2, 3/4, 1. The first two directions are all there is of the plane.
    choices = STAGE(crop, 3, relevance_weight=0.5)
    assert choices.order.tolist() == [2, 1, 0]
    assert choices.margins.tolist()[:2] == pytest.approx([1 - 9 / 16, 9 / 16], abs=1e-5)
    assert STAGE(crop, 2, relevance_weight=0.0).order.tolist() == [0, 1]


def test_the_range_is_that_of_the_whole_picture() -> None:
    features, text = torch.tensor([[1.0, 0.2], [0.3, 1.0]]), torch.tensor([[1.0, 0.0]])
    largest = [1.0, 0.2]  # of all pictures here the token most like the text, so the least relevant
    low = -1 / (1 + 0.2**2) ** 0.5
    own = -0.3 / (0.3**2 + 1) ** 0.5
    two = [largest, [0.3, 1.0]]
    for tokens, high in ((two, own), ([*two, [-1.0, 0.0]], 1.0)):
        picture = torch.tensor(tokens)
        choices = STAGE(crop_of(features, text=text, picture=picture), 2, relevance_weight=0.5)
        r = 0.5 + 0.5 * (own - low) / (high - low)
        assert choices.order.tolist() == [1, 0]
        assert choices.margins[0] == pytest.approx(1 - (0.5 / r) ** 2, abs=1e-5)


def test_duplicates_one_token_and_no_text() -> None:
    text = torch.ones(2, 3)
    assert STAGE(crop_of(torch.ones(5, 3), text=text), 4, relevance_weight=0.5).order.tolist() == [0, 1, 2, 3]
    assert STAGE(crop_of(torch.ones(1, 3), text=text), 1, relevance_weight=0.5).order.tolist() == [0]
    pairs = crop_of(torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]), text=text)
    assert STAGE(pairs, 4, relevance_weight=0.5).order.tolist() == [0, 2, 1, 3]
    with pytest.raises(PromptError, match="no text"):
        STAGE(crop_of(torch.ones(2, 3)), 1, relevance_weight=0.5)
