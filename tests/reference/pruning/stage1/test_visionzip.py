"""VisionZip: what is dominant, what joins what, and in which order rows go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sts_export.reference import CLS, Choices, Crop, find_stage1
from sts_export.reference.pruning.stage1.visionzip import contextual_count
from tests.reference.pruning.crops import crop_of

STAGE: Any = find_stage1("visionzip")
X, Y, XY, UP = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 5.0]


def crop(keys: list[list[float]], attention: list[float], **rest: Any) -> Crop:
    features = torch.arange(2.0 * len(keys)).view(-1, 2)
    given = torch.tensor(attention)
    rest = {"cls": torch.tensor([9.0, 9.0]), "cls_attention": given, "received_attention": given, **rest}
    return crop_of(features, mean_keys=keys, **rest)


def test_splits_of_the_public_code() -> None:
    assert {keep: contextual_count(keep) for keep in (192, 128, 64)} == {192: 30, 128: 20, 64: 10}
    assert [contextual_count(keep) for keep in (1, 2, 9, 10)] == [1, 1, 1, 2]


def test_one_target_by_hand() -> None:
    attention = [0.1, 0.9, 0.2, 0.3, 0.8]
    choices: Choices = STAGE(crop([X, Y, X, X, Y], attention), 4, score="cls")
    # D = 3: CLS, 1 and 4; of the rest 0, 2, 3 the first is the target.
    assert choices.order.tolist() == [CLS, 1, 4, 0]
    assert choices.last is not None and choices.last.tolist() == [False, False, False, True]
    assert choices.joined is not None and choices.joined.tolist() == [-1, -1, 0, 0, -1]
    assert choices.features is not None
    assert choices.features.tolist() == [[5.0, 7.0], [2, 3], [4, 5], [6, 7], [8, 9]]  # [0 1] + mean of [4 5] and [6 7]
    assert choices.margins[1:3].tolist() == pytest.approx([(0.9 - 0.3) / 0.9, (0.8 - 0.3) / 0.8])
    received: Choices = STAGE(crop([X, Y, X, X, Y], attention), 4, score="received")
    assert received.order.tolist() == [1, 4, 3, 0]
    assert received.joined is not None and received.joined.tolist() == [-1, -1, 0, -1, -1]


def test_two_targets_by_hand() -> None:
    """K = 10 of 15: CLS, 7 patches, and 2 targets of the other 8, the first and the fifth of them."""
    keys = [X] * 7 + [X, Y, UP, XY, Y, [0.0, 0.1], X, [-1.0, 0.1]]
    choices: Choices = STAGE(crop(keys, [1.0] * 7 + [0.0] * 8), 10, score="cls")
    assert choices.order.tolist() == [CLS, *range(7), 7, 11]
    # 10 lies half-way between both and goes to the lower one; lengths do not matter; 14 looks away from both, less from 11.
    assert choices.joined is not None and choices.joined.tolist()[7:] == [-1, 11, 11, 7, -1, 11, 7, 11]
    assert choices.features is not None
    assert choices.features[7].tolist() == [14 + (20 + 26) / 2, 15 + (21 + 27) / 2]
    assert choices.features[11].tolist() == [22 + (16 + 18 + 24 + 28) / 4, 23 + (17 + 19 + 25 + 29) / 4]
    assert choices.margins[-2] == 0.0 and choices.margins[-1] == 1.0


def test_one_kept_token_is_a_target_of_all() -> None:
    for score in ("cls", "received"):
        choices: Choices = STAGE(crop([X, Y, X], [0.1, 0.9, 0.2]), 1, score=score)
        assert choices.order.tolist() == [0] and choices.joined is not None
        assert choices.joined.tolist() == [-1, 0, 0]
    two: Choices = STAGE(crop([X, Y, X], [0.1, 0.9, 0.2]), 2, score="cls")
    assert two.order.tolist() == [CLS, 0]


def test_tiles_stay_in_reading_order_and_types_are_kept() -> None:
    assert STAGE(crop([X, Y, X], [0.1, 0.9, 0.2], alone=False), 2, score="cls").last is None
    half = crop([X, Y, X], [0.1, 0.9, 0.2])
    choices: Choices = STAGE(half._replace(features=half.features.half()), 1, score="cls")
    assert choices.features is not None and choices.features.dtype == torch.float16


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from(["cls", "received"]), st.data())
def test_every_token_is_kept_or_joins_a_target(count: int, seed: int, score: str, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, count - 1))
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    made = crop(drawn(count, 3).tolist(), drawn(count).tolist())
    choices: Choices = STAGE(made, keep, score=score)
    assert choices.joined is not None and choices.features is not None and choices.last is not None
    kept = [token for token in choices.order.tolist() if token != CLS]
    assert len(choices.order) == keep == len(choices.margins) and len(set(kept)) == len(kept)
    targets = choices.order[choices.last].tolist()
    assert len(targets) == contextual_count(keep) and targets == sorted(targets)
    joined = choices.joined.tolist()
    assert all((joined[token] == -1) == (token in kept) for token in range(count))
    assert {into for into in joined if into >= 0} <= set(targets)
    for target in targets:
        own = [token for token in range(count) if joined[token] == target]
        expected = made.features[target] + (made.features[own].mean(dim=0) if own else 0)
        torch.testing.assert_close(choices.features[target], expected)
