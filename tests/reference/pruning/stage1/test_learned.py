"""The learned stage against torch's own modules, and its fill by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sts_export.errors import CheckpointError, RequestError
from sts_export.reference import find_stage1, load_selector
from sts_export.reference.pruning.stage1.learned import keep_probability
from tests.reference.pruning.crops import crop_of

STAGE = find_stage1("learned")


def drawn(width: int, seed: int) -> tuple[nn.Sequential, dict[str, Tensor]]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 2))
    return network, {f"selector.linear_{2 - (name[0] == '0')}{name[1:]}": each for name, each in network.state_dict().items()}


def by_first_value(width: int) -> dict[str, Tensor]:
    """p grows with the first value of a token: gelu(x + 9) is x + 9 for these."""
    first, second = torch.zeros(width // 2, width), torch.zeros(2, width // 2)
    first[0, 0] = second[1, 0] = 1.0
    biases = {"selector.linear_1.bias": torch.full((width // 2,), 9.0), "selector.linear_2.bias": torch.tensor([9.0, 0.0])}
    return {"selector.linear_1.weight": first, "selector.linear_2.weight": second, **biases}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_are_those_of_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    network, weights = drawn(16, 3)
    save_file(weights, tmp_path / "selector.safetensors")
    features = torch.randn(30, 16).to(dtype)
    expected = network(features.float()).softmax(dim=1)[:, 1]
    torch.testing.assert_close(keep_probability(features, load_selector(tmp_path / "selector.safetensors")), expected)


def test_nine_tenths_are_likely_and_the_rest_is_different() -> None:
    features = torch.zeros(14, 4)
    features[:, 0] = torch.arange(14, 0, -1).float() / 10  # the first is the likeliest
    features[:9, 1] = 1.0
    features[9:, 1] = torch.tensor([3.0, 0.5, 0.4, -0.1, 0.3])
    features[9:, 2] = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0])
    crop = crop_of(features, weights=by_first_value(4))
    # K = 10: 9, then 13, which looks aside; K = 12: 10, then 13, 12.
    assert STAGE(crop, 10).order.tolist() == [*range(9), 13]
    assert STAGE(crop, 12).order.tolist() == [*range(10), 13, 12]
    assert STAGE(crop, 1).order.tolist() == [0] and STAGE(crop, 2).order.tolist()[0] == 0
    assert STAGE(crop, 9).order.tolist()[:8] == list(range(8))
    assert sorted(STAGE(crop, 14).order.tolist()) == list(range(14))


def test_ties_and_duplicates_take_the_lowest_index() -> None:
    same = crop_of(torch.ones(30, 4), weights=by_first_value(4))
    assert STAGE(same, 20).order.tolist() == list(range(20))
    assert STAGE(same, 20).margins.max() == 0
    certain = crop_of(torch.tensor([[30.0, 0, 0, 0], [60.0, 0, 0, 0]]), weights=by_first_value(4))
    assert STAGE(certain, 1).order.tolist() == [0]  # both are 1 in float32


def test_fill_against_loops() -> None:
    _, weights = drawn(8, 1)
    for seed in range(10):
        features = torch.randn(30, 8, generator=torch.Generator().manual_seed(seed))
        order = STAGE(crop_of(features, weights=weights), 25).order.tolist()
        assert sorted(order[:22]) == sorted(keep_probability(features, weights).topk(22).indices.tolist())
        cosine = nn.functional.cosine_similarity(features[:, None].double(), features[None].double(), dim=2)
        for step in range(22, 25):
            left = [token for token in range(30) if token not in order[:step]]
            assert order[step] == min(left, key=lambda token: float(cosine[token, order[:step]].max()))


def test_a_file_that_holds_no_selector(tmp_path: Path) -> None:
    save_file({"selector.linear_1.weight": torch.ones(2, 4)}, tmp_path / "half.safetensors")
    torch.save({"selector.linear_1.weight": torch.ones(2, 4)}, tmp_path / "pickle.safetensors")
    for name, reason in (("half", "no selector.linear_1.bias"), ("pickle", "no selector"), ("absent", "no selector")):
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_selector(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


def test_without_weights() -> None:
    with pytest.raises(RequestError, match="selector"):
        STAGE(crop_of(torch.ones(3, 4)), 1)
