"""The two selections against triple loops, hand-checked cases and transformers' own attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sts_export.pruning.stage1.repulsion import Anchor
from sts_export.reference import (
    ReferenceModel,
    equal_shares,
    find_stage1,
    last_token_scores,
    last_token_topk,
    repulsion_select,
    repulsion_trace,
    select_by_crop,
    top_positions,
)
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava

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


def test_equal_shares_by_hand() -> None:
    assert equal_shares(480, [576] * 5) == [96] * 5
    assert equal_shares(10, [36, 18, 18]) == [4, 3, 3]
    assert equal_shares(3, [5, 5, 5, 5]) == [1, 1, 1, 0]
    assert equal_shares(60, [36, 18, 18]) == [24, 18, 18]  # 20 each: two crops have 18, their 4 go to the base crop
    assert equal_shares(30, [36, 3, 36, 5]) == [
        11,
        3,
        11,
        5,
    ]  # 7 or 8 each: 3 and 5 are fewer, the other two get the 22 that are left
    assert equal_shares(11, [100, 100, 2]) == [5, 4, 2]  # 4, 4, 3: one is left, for the first crop
    assert equal_shares(5, [4, 0, 4]) == [3, 0, 2]
    assert equal_shares(99, [1, 2, 3]) == equal_shares(6, [1, 2, 3]) == [1, 2, 3]


def test_shares_sum_up_and_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        candidates = torch.randint(0, 12, (5,), generator=generator).tolist()
        keep = int(torch.randint(1, 40, (1,), generator=generator))
        shares = equal_shares(keep, candidates)
        assert sum(shares) == min(keep, sum(candidates))
        assert all(0 <= share <= count for share, count in zip(shares, candidates, strict=True))
        open_shares = [share for share, count in zip(shares, candidates, strict=True) if share < count]
        assert all(share >= max(open_shares, default=0) - 2 for share in open_shares)
        assert open_shares == sorted(open_shares, reverse=True)


@pytest.mark.parametrize("anchor", ["mean", "first", "saliency"])
def test_crops_are_selected_each_within_itself(anchor: Anchor) -> None:
    generator = torch.Generator().manual_seed(2)
    features, saliency = torch.randn(20, 4, generator=generator), torch.rand(20, generator=generator)
    crops = torch.tensor([0] * 8 + [1, 2, 2] * 4)  # rows across two tiles
    tower, settings = {"cls_attention": saliency}, {"anchor": anchor, "epsilon": 1e-6}
    kept, traces = select_by_crop(find_stage1("repulsion"), features, crops, 13, tower, settings)
    assert len(traces) == 3
    expected: list[int] = []
    for crop, share in enumerate((5, 4, 4)):
        own = [token for token in range(20) if crops[token] == crop]
        inside = repulsion_select(features[own], share, anchor=anchor, saliency=saliency[own]).tolist()
        expected += [own[index] for index in inside]
        trace = traces[crop]
        if share == len(own):
            assert trace is None
        else:
            assert trace is not None and sorted(trace.order.tolist()) == [own[index] for index in inside]
    assert kept == sorted(expected)


def test_top_positions_ties_and_order() -> None:
    scores = torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5])
    assert [top_positions(scores, keep).tolist() for keep in (1, 2, 3, 4, 9)] == [
        [1],
        [1, 3],
        [0, 1, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
    ]
    assert top_positions(torch.zeros(3000), 480).tolist() == list(range(480))


def test_last_token_by_hand() -> None:
    query = torch.zeros(2, 5, 4)
    key = torch.randn(1, 5, 4)
    visual = torch.tensor([False, True, True, False, False])
    assert last_token_scores(query, key, visual, scale=0.5).tolist() == pytest.approx([0.2, 0.2])
    real = torch.tensor([True, True, True, True, False])  # padding after: the last real token is number 3
    assert last_token_scores(query, key, visual, real=real, scale=0.5).tolist() == pytest.approx([0.25, 0.25])
    key = torch.zeros(1, 5, 4)
    query[0, 4, 0], query[1, 4, 0] = 2.0, -2.0
    key[0, 2, 0] = 3.0  # head 0 sees e^3 here, head 1 e^-3, both 1 elsewhere
    expected = (np.exp(3) / (np.exp(3) + 4) + np.exp(-3) / (np.exp(-3) + 4)) / 2
    assert last_token_scores(query, key, visual, scale=0.5)[1].item() == pytest.approx(expected, rel=1e-6)
    assert last_token_topk(query, key, visual, 1, scale=0.5).tolist() == [1]


@pytest.mark.parametrize("left, right", [(0, 0), (3, 0), (0, 2), (2, 4)])
def test_padding_does_not_change_the_scores(left: int, right: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(4, 9, 8, generator=generator), torch.randn(2, 9, 8, generator=generator)
    visual = torch.zeros(9, dtype=torch.bool)
    visual[2:7] = True
    plain = last_token_scores(query, key, visual, scale=8**-0.5)

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:, :1]] * left + [values] + [values[:, :1] * 50] * right, dim=1)

    def padded_mask(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (left, right))

    real = padded_mask(torch.ones(9, dtype=torch.bool))
    scores = last_token_scores(padded(query), padded(key), padded_mask(visual), real=real, scale=8**-0.5)
    torch.testing.assert_close(scores, plain)


def test_grouped_queries_read_their_own_key_head() -> None:
    query, key = torch.randn(6, 4, 8), torch.randn(2, 4, 8)
    visual = torch.ones(4, dtype=torch.bool)
    per_head = [torch.softmax(key[head // 3] @ query[head, 3] * 0.3, dim=0) for head in range(6)]
    torch.testing.assert_close(last_token_scores(query, key, visual, scale=0.3), torch.stack(per_head).mean(dim=0))


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    folder = write_random_llava(tmp_path_factory.mktemp("stages"), RandomLlava(seed=3, attention_bias=True))
    return ReferenceModel.open(folder, attention="eager")


@pytest.mark.parametrize("feature_layer", [-2, -1, -3, 1])
def test_features_and_saliency_are_those_of_the_vision_tower(eager: ReferenceModel, feature_layer: int) -> None:
    config = eager.model.config
    before = config.vision_feature_layer
    image = eager.prepare("x", [random_image(2)]).images[0]
    try:
        config.vision_feature_layer = feature_layer
        seen = eager.vision(image)
    finally:
        config.vision_feature_layer = before
    tower: Any = eager.model.model.vision_tower(image.pixel_values, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(seen.features, tower.hidden_states[feature_layer][0, 1:])
    layer = {-1: 2, -2: 1, -3: 0, 1: 0}[feature_layer]  # of 3 encoder layers
    assert seen.saliency is not None
    torch.testing.assert_close(seen.saliency, tower.attentions[layer][0].mean(dim=0)[0, 1:])
