"""Stages that keep the largest of what the tower gives, and those that choose by place or seed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.reference import Choices, Crop, find_stage1
from sts_export.reference.pruning.random_keys import random_key
from tests.reference.pruning.crops import crop_of, scored

SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=12)


def kept(choices: Choices) -> list[int]:
    return sorted(choices.order.tolist())


def test_largest_by_hand() -> None:
    values = [0.1, 0.4, 0.2, 0.4, 0.3, 0.2]
    for name in ("received-attention", "cls-attention"):
        stage = find_stage1(name)
        assert [kept(stage(scored(values), keep)) for keep in (1, 2, 3, 4)] == [[1], [1, 3], [1, 3, 4], [1, 2, 3, 4]]
        one, three = stage(scored(values), 1), stage(scored(values), 3)
        assert one.margins.tolist() == [0.0]  # a tie
        torch.testing.assert_close(three.margins, torch.tensor([0.5, 0.5, 1 / 3], dtype=torch.float64))
        assert three.features is three.joined is three.last is None


def test_each_stage_reads_its_own_attention() -> None:
    crop = scored([0.0, 1.0], cls_attention=[1.0, 0.0])
    assert kept(find_stage1("received-attention")(crop, 1)) == [1]
    assert kept(find_stage1("cls-attention")(crop, 1)) == [0]


@settings(max_examples=100, deadline=None)
@given(SCORES, st.data())
def test_no_dropped_token_beats_a_kept_one(values: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    chosen = kept(find_stage1("received-attention")(scored(values), keep))
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token))
    assert chosen == sorted(ranked[:keep])


def test_random_follows_the_place_in_the_grid() -> None:
    stage = find_stage1("random")
    whole = crop_of(torch.zeros(12, 2), 4, seed=5, number=2)
    keys = [random_key(5, [1, 2, place]) for place in range(12)]
    assert kept(stage(whole, 4)) == sorted(sorted(range(12), key=lambda place: -keys[place])[:4])
    # The first column is no candidate: the others keep their keys.
    left = [place for place in range(12) if place % 4]
    tiles: Crop = whole._replace(features=torch.zeros(9, 2), places=whole.places[left])
    best = sorted(left, key=lambda place: -keys[place])[:4]
    assert [left[token] for token in kept(stage(tiles, 4))] == sorted(best)
    others = [whole._replace(seed=6), whole._replace(number=1)]
    assert all(kept(stage(other, 4)) != kept(stage(whole, 4)) for other in others)
