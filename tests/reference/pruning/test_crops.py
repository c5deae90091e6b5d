"""How crops share K, and that each is selected within itself."""

from __future__ import annotations

import pytest
import torch

from sts_export.pruning.stage1.repulsion import Anchor
from sts_export.reference import equal_shares, find_stage1, repulsion_select, select_by_crop

torch.set_num_threads(1)


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
    selection, traces = select_by_crop(find_stage1("repulsion"), features, crops, 13, tower, settings)
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
    assert selection.kept == selection.order == sorted(expected)
    assert torch.equal(selection.features, features[selection.order]) and selection.joined is None
