"""A margin is small wherever rounding may turn a choice: the same with numbers that rounding has moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sts_export.reference import Choices, find_stage1
from tests.reference.pruning.crops import crop_of

CLEAR = 1e-5
SETTINGS: dict[str, dict[str, Any]] = {
    "received-attention": {},
    "cls-attention": {},
    "hiprune": {"alpha": 1.0},
    "divprune": {},
    "residual-qr": {},
    "visionzip": {"score": "cls"},
    "vscan": {"score": "received"},
    "cdpruner": {"relevance_weight": 0.5},
    "learned": {},
}
ATTENTIONS = ("received_attention", "cls_attention", "early_received_attention", "middle_received_attention")
COUNT, WIDTH, NARROW = 48, 64, 4


def chosen(name: str, seed: int, *, ties: bool, moved: bool) -> Choices:
    """12 of 48 to 40 of 48 tokens; with ties, of a few small integers; moved: each number by a few roundings."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        rows = torch.randint(-2, 3, shape, generator=generator).float() if ties else torch.randn(shape, generator=generator)
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) - 0.5
        return rows * (1 + 4e-7 * noise) if moved else rows

    width = NARROW if ties else WIDTH
    features = drawn(COUNT, width)
    given: dict[str, Any] = {attention: drawn(COUNT).abs() for attention in ATTENTIONS}
    shapes = {"linear_1.weight": (6, width), "linear_1.bias": (6,), "linear_2.weight": (2, 6), "linear_2.bias": (2,)}
    given["weights"] = {f"selector.{name}": drawn(*shape) for name, shape in shapes.items()}
    given["mean_keys"], given["text"], given["cls"] = drawn(COUNT, 4), drawn(5, width), drawn(width)
    choices: Choices = find_stage1(name)(crop_of(features, 8, **given), 12 + seed % 29, **SETTINGS[name])
    return choices


@pytest.mark.parametrize("name", SETTINGS)
def test_small_margins_mark_what_rounding_turns(name: str) -> None:
    turned = clear = 0
    for seed in range(60):
        ties = seed % 2 == 1
        exact, other = (chosen(name, seed, ties=ties, moved=moved) for moved in (False, True))
        assert len(exact.margins) == len(exact.order) and bool((exact.margins >= 0).all())
        same = sorted(exact.order.tolist()) == sorted(other.order.tolist())
        if exact.joined is not None and other.joined is not None:
            same = same and torch.equal(exact.joined, other.joined)
        if float(exact.margins.min()) > CLEAR:
            assert same, seed
            clear += 1
        turned += not same
    assert clear >= 25 and turned
