"""The budget solver against hand-checked numbers and a brute force over all candidates."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sts_export.errors import BudgetError
from sts_export.json_records import decode, encode
from sts_export.pruning.budget import average_tokens, parse_budget, solve_budget, stage2_keep
from sts_export.pruning.choosing import config_for_budget
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.methods import default_prune_layer
from sts_export.pruning.stage1.keep_all import KeepAll as KeepAllBefore
from sts_export.pruning.stage1.repulsion import Repulsion
from sts_export.pruning.stage2.keep_all import KeepAll as KeepAllInside
from sts_export.pruning.stage2.last_token import LastToken

LLAVA_7B: dict[str, Any] = {"num_visual_tokens": 576, "num_layers": 32}
LLAVA_13B: dict[str, Any] = {"num_visual_tokens": 576, "num_layers": 40}
GOOD = PruningConfig(num_visual_tokens=576, num_layers=32, prune_layer=16, keep_stage1=96, keep_stage2=32)

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=200)
layer_counts = st.integers(2, 48)
token_counts = st.integers(1, 700)
ratios = st.one_of(st.just(1 / 3), st.just(1.0), st.floats(0.01, 1.0))


def mean_over_layers(layers: int, prune_layer: int, keep1: int, keep2: int) -> Fraction:
    """What every single layer sees, averaged: layers before the prune layer K, the others K'."""
    return Fraction(sum(keep1 if layer < prune_layer else keep2 for layer in range(layers)), layers)


def candidates(tokens: int, ratio: float) -> list[tuple[int, int]]:
    """The documented line: K' = max(1, floor(ratio * K + 1e-6)) for K = 1..N, then K = N with K' growing up to N."""
    line = [(keep, max(1, math.floor(ratio * keep + 1e-6))) for keep in range(1, tokens + 1)]
    return line + [(tokens, keep2) for keep2 in range(line[-1][1] + 1, tokens + 1)]


@pytest.mark.parametrize(("budget", "keep"), [("128", (192, 64)), ("64", (96, 32)), ("32", (48, 16))])
def test_the_papers_budgets_for_7b(budget: str, keep: tuple[int, int]) -> None:
    config = config_for_budget(budget, **LLAVA_7B)
    assert (config.keep_stage1, config.keep_stage2) == keep
    assert config.prune_layer == 16
    assert config.average == float(budget)
    assert average_tokens(32, 16, *keep) == int(budget)


@pytest.mark.parametrize(
    ("budget", "keep", "average"),
    [
        ("128", (213, 71), Fraction(639, 5)),  # the pair of 7B, 192/64, would average 115.2 here
        ("64", (107, 35), Fraction(319, 5)),
        ("32", (54, 18), Fraction(162, 5)),
    ],
)
def test_13b_gets_its_true_average(budget: str, keep: tuple[int, int], average: Fraction) -> None:
    config = config_for_budget(budget, **LLAVA_13B)
    found = config.keep_stage1, config.keep_stage2
    assert found == min(candidates(576, 1 / 3), key=lambda pair: (abs(mean_over_layers(40, 16, *pair) - int(budget)), pair)), (
        "brute force disagrees"
    )
    assert (found, mean_over_layers(40, 16, *found)) == (keep, average)
    assert config.average == float(average)


def test_the_7b_pair_on_13b_averages_less() -> None:
    assert average_tokens(40, 16, 192, 64) == Fraction(1152, 10)


def test_qwen_depth() -> None:
    config = config_for_budget("64", num_visual_tokens=1296, num_layers=28)
    assert config.prune_layer == 14
    assert (config.keep_stage1, config.keep_stage2) == (96, 32)


@pytest.mark.parametrize(("layers", "expected"), [(32, 16), (40, 16), (28, 14), (4, 2), (5, 2), (24, 12), (2, 1), (3, 1)])
def test_default_prune_layer(layers: int, expected: int) -> None:
    assert default_prune_layer(layers) == expected


@fixed
@given(layer_counts, st.data(), token_counts, ratios)
def test_the_pair_is_the_closest_of_all_candidates(layers: int, data: st.DataObject, tokens: int, ratio: float) -> None:
    prune_layer = data.draw(st.integers(1, layers - 1))
    budget = data.draw(st.fractions(1, tokens, max_denominator=1000))
    found = solve_budget(budget, num_visual_tokens=tokens, num_layers=layers, prune_layer=prune_layer, ratio=ratio)
    averages = {pair: mean_over_layers(layers, prune_layer, *pair) for pair in candidates(tokens, ratio)}
    assert average_tokens(layers, prune_layer, *found) == averages[found]
    nearest = min(abs(average - budget) for average in averages.values())
    closest = [pair for pair, average in averages.items() if abs(average - budget) == nearest]
    assert found == min(closest, key=averages.__getitem__)  # of two equally close ones the smaller
    assert 1 <= found[1] <= found[0] <= tokens


@fixed
@given(layer_counts, st.data(), token_counts, ratios)
def test_ties_go_to_the_smaller_pair(layers: int, data: st.DataObject, tokens: int, ratio: float) -> None:
    prune_layer = data.draw(st.integers(1, layers - 1))
    line = candidates(tokens, ratio)
    assume(len(line) > 1)
    step = data.draw(st.integers(0, len(line) - 2))
    lower, upper = (mean_over_layers(layers, prune_layer, *pair) for pair in line[step : step + 2])
    assert lower < upper
    model: dict[str, Any] = {
        "num_visual_tokens": tokens,
        "num_layers": layers,
        "prune_layer": prune_layer,
        "ratio": ratio,
    }
    middle = (lower + upper) / 2
    assert solve_budget(middle, **model) == line[step]
    assert solve_budget(middle + Fraction(1, 10**9), **model) == line[step + 1]
    assert solve_budget(lower, **model) == line[step]


@fixed
@given(layer_counts, st.data(), token_counts, ratios)
def test_a_larger_budget_never_keeps_less(layers: int, data: st.DataObject, tokens: int, ratio: float) -> None:
    prune_layer = data.draw(st.integers(1, layers - 1))
    small, large = sorted(data.draw(st.lists(st.floats(1, tokens), min_size=2, max_size=2)))
    pairs = [
        solve_budget(budget, num_visual_tokens=tokens, num_layers=layers, prune_layer=prune_layer, ratio=ratio)
        for budget in (small, large)
    ]
    assert pairs[0][0] <= pairs[1][0] and pairs[0][1] <= pairs[1][1]


@fixed
@given(token_counts, layer_counts, ratios)
def test_100_percent_keeps_everything(tokens: int, layers: int, ratio: float) -> None:
    config = config_for_budget("100%", num_visual_tokens=tokens, num_layers=layers, ratio=ratio)
    assert (config.keep_stage1, config.keep_stage2, config.average) == (tokens, tokens, tokens)


def test_the_smallest_budget_keeps_one_token() -> None:
    config = config_for_budget("1", **LLAVA_7B)
    assert (config.keep_stage1, config.keep_stage2) == (1, 1)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("64", Fraction(64)),
        (" 64 ", Fraction(64)),
        ("+64", Fraction(64)),
        ("64.5", Fraction(129, 2)),
        (".5", Fraction(1, 2)),
        ("20%", Fraction(576, 5)),
        ("20 %", Fraction(576, 5)),
        ("12.5%", Fraction(72)),
        ("0%", Fraction(0)),
        ("-3", Fraction(-3)),
    ],
)
def test_budgets_are_read_exactly(text: str, tokens: Fraction) -> None:
    assert parse_budget(text, 576) == tokens


@pytest.mark.parametrize(("text", "same_as"), [("20%", "115.2"), ("50%", "288"), ("12.5%", "72"), ("1%", "5.76")])
def test_percentages_are_shares_of_n(text: str, same_as: str) -> None:
    config = config_for_budget(text, **LLAVA_7B)
    assert config.budget == text
    assert replace(config, budget=same_as) == config_for_budget(same_as, **LLAVA_7B)


UNREACHABLE = {
    "zero": "0",
    "negative": "-5",
    "above-n": "577",
    "just-above-n": "576.000001",
    "just-below-one": "0.999",
    "percent-zero": "0%",
    "percent-above": "100.1%",
    "percent-tiny": "0.1%",
    "long": "9" * 40,
}
NOT_NUMBERS = {
    "text": "many",
    "empty": "",
    "blank": "  ",
    "percent-alone": "%",
    "two-percent-signs": "12%%",
    "nan": "nan",
    "inf": "inf",
    "minus-inf": "-inf",
    "fraction": "1/2",
    "division-by-zero": "1/0",
    "underscore": "1_000",
    "hex": "0x40",
    "comma": "64,5",
    "two-numbers": "64 32",
    "exponent": "1e2",
    "huge-exponent": "1e999999999",
    "tiny-exponent": "1e-999999999",
    "endless": "9" * 100_000,
    "other-digits": "٦٤",
    "line-break": "6\n4",
}


def one_line_refusal(budget: str) -> str:
    with pytest.raises(BudgetError) as caught:
        config_for_budget(budget, **LLAVA_7B)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("budget", UNREACHABLE.values(), ids=UNREACHABLE.keys())
def test_unreachable_budgets_name_the_range(budget: str) -> None:
    message = one_line_refusal(budget)
    assert "unreachable" in message and "1 to 576" in message


@pytest.mark.parametrize("budget", ["101%", " 1000% ", "0.1736%", "-3 %", "0%"])
def test_unreachable_shares_are_answered_as_shares(budget: str) -> None:
    message = one_line_refusal(budget)
    assert f"budget {budget.strip()} is unreachable" in message and "0.1737% to 100% (1 to 576 tokens)" in message


@pytest.mark.parametrize("tokens", [1, 7, 36, 576, 2880, 16384])
def test_the_smallest_share_named_is_accepted(tokens: int) -> None:
    shape: dict[str, Any] = {"num_visual_tokens": tokens, "num_layers": 4}
    with pytest.raises(BudgetError) as caught:
        config_for_budget("0%", **shape)
    share = re.search(r"can be (\S+%) to", str(caught.value))
    assert share is not None
    config = config_for_budget(share[1], **shape)
    assert (config.keep_stage1, config.keep_stage2) == (1, 1)


@pytest.mark.parametrize("budget", NOT_NUMBERS.values(), ids=NOT_NUMBERS.keys())
def test_what_is_no_number_is_refused_at_once(budget: str) -> None:
    started = time.process_time()
    assert "not a plain number" in one_line_refusal(budget)
    assert time.process_time() - started < 1


@fixed
@given(st.text(max_size=30))
def test_any_text_is_a_budget_or_a_budget_error(text: str) -> None:
    try:
        config = config_for_budget(text, **LLAVA_7B)
    except BudgetError as error:
        assert "\n" not in str(error)
    else:
        assert 1 <= config.average <= 576


@pytest.mark.parametrize("budget", [math.nan, math.inf, -math.inf])
def test_the_solver_refuses_numbers_that_are_none(budget: float) -> None:
    with pytest.raises(BudgetError, match="unreachable"):
        solve_budget(budget, num_visual_tokens=576, num_layers=32, prune_layer=16)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan, math.inf])
def test_ratios_outside_0_1_are_refused(ratio: float) -> None:
    with pytest.raises(BudgetError, match="ratio"):
        solve_budget(64, num_visual_tokens=576, num_layers=32, prune_layer=16, ratio=ratio)


@pytest.mark.parametrize(
    ("keep", "ratio", "expected"),
    [
        (3, 1 / 3, 1),
        (96, 1 / 3, 32),
        (575, 1 / 3, 191),
        (1, 1 / 3, 1),
        (2, 1 / 3, 1),
        (10, 0.1, 1),
        (10, 1.0, 10),
        (30, 0.1, 3),
    ],
)
def test_stage2_keeps_a_third_without_losing_one_to_rounding(keep: int, ratio: float, expected: int) -> None:
    assert stage2_keep(keep, ratio) == expected


def test_sts_s_has_no_stage_2() -> None:
    config = config_for_budget("64", method="sts-s", **LLAVA_7B)
    assert (config.keep_stage1, config.keep_stage2, config.average) == (64, 64, 64)


WRONG_CONFIGS: dict[str, dict[str, Any]] = {
    "prune-layer-zero": {"prune_layer": 0},
    "prune-layer-negative": {"prune_layer": -1},
    "prune-layer-last": {"prune_layer": 32},
    "one-layer": {"num_layers": 1, "prune_layer": 1},
    "stage1-zero": {"keep_stage1": 0},
    "stage1-above-n": {"keep_stage1": 577},
    "stage2-zero": {"keep_stage2": 0},
    "stage2-above-stage1": {"keep_stage2": 97},
    "method": {"method": "fastw"},
    "positions": {"positions": "shuffle"},
    "another-method": {"method": "keep-all+last-token"},
    "all-before": {"stage1": KeepAllBefore(), "method": "keep-all+last-token"},
    "all-inside": {"stage2": KeepAllInside(), "method": "repulsion+keep-all"},
    "stage-of-another-method": {"stage2": KeepAllInside()},
    "sts-s-with-a-second-stage": {"method": "sts-s"},
}


@pytest.mark.parametrize("change", WRONG_CONFIGS.values(), ids=WRONG_CONFIGS.keys())
def test_impossible_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BudgetError) as caught:
        replace(GOOD, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [0, -1, 32, 1000])
def test_impossible_prune_layers_are_refused_before_solving(layer: int) -> None:
    with pytest.raises(BudgetError, match="choose --prune-layer between 1 and 31"):
        config_for_budget("64", prune_layer=layer, **LLAVA_7B)


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(BudgetError, match="unknown method 'fastw': choose one of sts, sts-s, "):
        config_for_budget("64", method="fastw", **LLAVA_7B)


@pytest.mark.parametrize("anchor", ["mean", "first", "saliency"])
@pytest.mark.parametrize("positions", ["reindex", "keep"])
@pytest.mark.parametrize("score_layer", ["own", "next"])
def test_json_round_trip(anchor: Any, positions: Any, score_layer: Any) -> None:
    config = replace(GOOD, stage1=Repulsion(anchor, 1e-3), positions=positions, stage2=LastToken(score_layer))
    data = json.loads(json.dumps(encode(config)))
    assert data["average"] == 64.0
    assert (data["keep_stage1"], data["keep_stage2"], data["method"]) == (96, 32, "sts")
    assert data["stage1"] == {"name": "repulsion", "settings": {"anchor": anchor, "epsilon": 1e-3}, "package": None}
    assert data["stage2"] == {"name": "last-token", "settings": {"score_layer": score_layer}, "package": None}
    assert decode(PruningConfig, data) == config


# Images of other sizes


def closest(n: int, share: Fraction, config: PruningConfig) -> tuple[int, int]:
    """Of all candidates the pair whose average is closest to the share, of two the smaller."""
    averages = {pair: mean_over_layers(config.num_layers, config.prune_layer, *pair) for pair in candidates(n, config.ratio)}
    return min(averages, key=lambda pair: (abs(averages[pair] - share), averages[pair]))


@pytest.mark.parametrize("budget", ["20%", "1%", "12.5 %", "66.6%", "100%", " 33% "])
@pytest.mark.parametrize("options", [{}, {"method": "sts-s"}, {"ratio": 0.5, "prune_layer": 3}], ids=["sts", "sts-s", "half"])
def test_a_share_follows_every_image(budget: str, options: dict[str, Any]) -> None:
    """The average is closest to the share of the image's own tokens, and one token is always left."""
    config = config_for_budget(budget, num_visual_tokens=150, num_layers=8, **options)
    assert config.keeps(150) == (config.keep_stage1, config.keep_stage2)
    before = (0, 0)
    for n in range(1, 151):
        keep1, keep2 = config.keeps(n)
        assert 1 <= keep2 <= keep1 <= n
        assert (keep1, keep2) == closest(n, max(Fraction(1), parse_budget(budget, n)), config)
        assert keep1 >= before[0] and keep2 >= before[1]
        assert (keep1, keep2) == (n, n) or budget != "100%"
        assert keep1 == keep2 or config.method == "sts"
        before = keep1, keep2


@pytest.mark.parametrize(
    "config",
    [
        config_for_budget("12", num_visual_tokens=150, num_layers=8),
        config_for_budget("12.5", num_visual_tokens=150, num_layers=8, method="sts-s"),
        PruningConfig(num_visual_tokens=150, num_layers=8, prune_layer=4, keep_stage1=40, keep_stage2=9),
        PruningConfig(num_visual_tokens=150, num_layers=8, prune_layer=4, keep_stage1=150, keep_stage2=150),
    ],
    ids=["tokens", "tokens-sts-s", "explicit", "everything"],
)
def test_counts_are_the_same_for_every_image_that_has_them(config: PruningConfig) -> None:
    for n in range(1, 151):
        keep1, keep2 = config.keeps(n)
        assert (keep1, keep2) == (min(config.keep_stage1, n), min(config.keep_stage2, n))
        assert 1 <= keep2 <= keep1 <= n
    assert config.keeps(150) == (config.keep_stage1, config.keep_stage2)


@pytest.mark.parametrize("budget", ["20%", "64", "64.5", None])
def test_budget_and_ratio_are_stored(budget: str | None) -> None:
    config = replace(GOOD, ratio=0.5) if budget is None else config_for_budget(budget, ratio=0.5, **LLAVA_7B)
    restored = decode(PruningConfig, json.loads(json.dumps(encode(config))))
    assert restored == config and (restored.budget, restored.ratio) == (budget, 0.5)
    assert [restored.keeps(n) for n in range(1, 577, 25)] == [config.keeps(n) for n in range(1, 577, 25)]


@pytest.mark.parametrize("change", [{"ratio": 0.0}, {"ratio": 1.1}, {"ratio": math.nan}, {"budget": "many"}, {"budget": "%"}])
def test_impossible_shares_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"ratio K'/K|is not a plain number"):
        replace(GOOD, **change)
