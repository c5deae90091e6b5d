"""A request's own budget: what an export at that budget has, and nothing that the bundle has no room for."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sts_export.errors import BudgetError
from sts_export.pruning.choosing import config_for_budget, config_for_counts
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.per_request import for_request, keeps_of_image

MODEL: dict[str, Any] = {"num_visual_tokens": 576, "num_layers": 32}
EXPORTED = config_for_budget("64", **MODEL)
SHARE = config_for_budget("20%", num_visual_tokens=1000, num_layers=8)
KINDS: dict[str, dict[str, Any]] = {
    "sts": {},
    "sts-s": {"method": "sts-s"},
    "inside-only": {"stage1": "keep-all"},
    "before-only": {"stage2": "keep-all"},
    "half": {"ratio": 0.5},
}
fixed = settings(derandomize=True, deadline=None, database=None, max_examples=150)
kinds = st.sampled_from(sorted(KINDS))


def refusal(exported: PruningConfig, budget: Any = None, keep: Any = None, tokens: int | None = None) -> str:
    with pytest.raises(BudgetError) as caught:
        asked = for_request(exported, budget, keep)
        keeps_of_image(exported, asked, exported.num_visual_tokens if tokens is None else tokens)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    return message


def exported_at(budget: str, kind: str, tokens: int, layers: int, prune_layer: int) -> PruningConfig:
    options = {"num_visual_tokens": tokens, "num_layers": layers, "prune_layer": prune_layer, **KINDS[kind]}
    try:
        return config_for_budget(budget, **options)
    except BudgetError:
        assume(False)
        raise


@fixed
@given(kinds, st.booleans(), st.integers(1, 300), st.integers(2, 12), st.data())
def test_equals_an_export_at_that_budget(kind: str, share: bool, tokens: int, layers: int, data: st.DataObject) -> None:
    """For every size of a picture, as long as both stages are in the graphs of the bundle."""
    prune_layer = data.draw(st.integers(1, layers - 1))
    top = 100 if share else tokens
    low, high = sorted(data.draw(st.lists(st.integers(1, top), min_size=2, max_size=2)))
    unit = "%" if share else ""
    large, small = (exported_at(f"{number}{unit}", kind, tokens, layers, prune_layer) for number in (high, low))
    assume(large.drops_before or not small.drops_before)
    asked = for_request(large, f"{low}{unit}")
    assert asked == small
    for size in {1, tokens, *data.draw(st.lists(st.integers(1, tokens), max_size=8))}:
        keeps = keeps_of_image(large, asked, size)
        assert keeps == small.keeps(size)
        assert keeps[0] <= large.keep_stage1 and keeps[1] <= large.keep_stage2


def test_nothing_asked_is_the_export_itself() -> None:
    assert for_request(EXPORTED) is EXPORTED
    assert keeps_of_image(EXPORTED, EXPORTED, 576) == (96, 32)


SAME: list[tuple[Any, str]] = [
    (" 32 ", "32"),
    (32, "32"),
    (32.0, "32.0"),
    (np.int64(32), "32"),
    (np.float32(32.5), "32.5"),
    (Fraction(65, 2), "32.5"),
    (1.5, "1.5"),
    ("5 %", "5 %"),
]


@pytest.mark.parametrize(("budget", "text"), SAME, ids=[repr(budget) for budget, _ in SAME])
def test_numbers_and_texts(budget: Any, text: str) -> None:
    assert for_request(EXPORTED, budget) == config_for_budget(text, **MODEL)


@pytest.mark.parametrize("budget", [True, b"32", [32], (32,), {}, 1j, np.array([32])], ids=repr)
def test_what_is_no_budget(budget: Any) -> None:
    assert "budget is a number of tokens or a text" in refusal(EXPORTED, budget)


@pytest.mark.parametrize("budget", ["", "many", "%", "1e1", "1/2", math.nan, math.inf, -math.inf, 10**400, 1e300], ids=repr)
def test_what_is_no_number(budget: Any) -> None:
    assert "is not a plain number" in refusal(EXPORTED, budget)


@pytest.mark.parametrize("budget", ["0", 0, -3, "0.9", 0.99, "64.3", 65, "128", "576", "577", "9" * 40], ids=repr)
def test_tokens_out_of_reach_name_the_tokens_within(budget: Any) -> None:
    message = refusal(EXPORTED, budget)
    assert f"budget {budget} is unreachable: with this bundle" in message and "can be 1 to 64; choose" in message


def test_the_exported_budget_is_within_reach_though_no_pair_has_it() -> None:
    exported = config_for_budget("64", num_visual_tokens=576, num_layers=40)
    assert exported.average == 63.8 and for_request(exported, "64") == exported
    assert "can be 1 to 64;" in refusal(exported, "65")
    assert "can be 0.1737% to 11.1111% (1 to 64 tokens) for a picture of 576;" in refusal(exported, "12%")


@pytest.mark.parametrize("budget", ["0%", "0.1%", "12%", "50 %", "100%", "101%", "-1%"])
def test_shares_out_of_reach_name_the_shares_within(budget: str) -> None:
    message = refusal(EXPORTED, budget)
    assert f"budget {budget} is unreachable: with this bundle" in message
    assert "can be 0.1737% to 11.1111% (1 to 64 tokens) for a picture of 576; choose" in message


def test_a_share_is_within_reach_by_the_size_of_the_picture() -> None:
    """Of 1000 tokens 20% are 200 on average, of which stage 1 keeps 300: all of a picture of 300, and half of 400."""
    assert (SHARE.keep_stage1, SHARE.keep_stage2) == (300, 100)
    half = for_request(SHARE, "40%")
    assert keeps_of_image(SHARE, half, 500) == (300, 100)
    assert keeps_of_image(SHARE, half, 40) == (24, 8)
    assert "can be 0.10000% to 20%" in refusal(SHARE, "40%")
    assert "can be 0.1667% to 33.3333% (1 to 200 tokens) for a picture of 600; choose" in refusal(SHARE, "40%", tokens=600)
    assert keeps_of_image(SHARE, for_request(SHARE, "100%"), 100) == (100, 100)


@fixed
@given(kinds, st.booleans(), st.integers(1, 300), st.integers(2, 12), st.data())
def test_the_range_that_is_named_is_within_reach_and_no_more(
    kind: str, share: bool, tokens: int, layers: int, data: st.DataObject
) -> None:
    prune_layer, size = data.draw(st.integers(1, layers - 1)), data.draw(st.integers(1, tokens))
    exported = exported_at(data.draw(st.sampled_from(["3", "20%", "60%", "100%"])), kind, tokens, layers, prune_layer)
    size, unit, top = (size, "%", 100) if share else (tokens, "", tokens)
    try:
        keeps_of_image(exported, for_request(exported, f"{top}{unit}"), size)
        return  # the whole picture is within reach
    except BudgetError as error:
        found = re.search(r"can be ([\d.]+)%? to ([\d.]+)%?", str(error))
    assert found is not None
    for bound in found.groups():
        keeps = keeps_of_image(exported, for_request(exported, bound + unit), size)
        assert keeps[0] <= exported.keep_stage1 and keeps[1] <= exported.keep_stage2
    # One token more in all layers is a step of at most 1 on average, and too much.
    beyond = Fraction(found[2]) + (Fraction(101, size) if share else Fraction(101, 100))
    if beyond <= top:
        refusal(exported, f"{float(beyond):.6f}{unit}", tokens=size)


def test_graphs_without_stage_1_drop_inside_only() -> None:
    whole = config_for_budget("100%", num_visual_tokens=36, num_layers=4)
    asked = for_request(whole, "20")  # with both stages 30 and 10
    assert (asked.keep_stage1, asked.keep_stage2) == (36, 4)
    for share, keeps in (("75%", [(36, 18), (20, 10), (4, 2), (1, 1)]), ("55%", [(36, 4), (20, 2), (4, 1), (1, 1)])):
        by_share = for_request(whole, share)
        assert [keeps_of_image(whole, by_share, size) for size in (36, 20, 4, 1)] == keeps
    assert "can be 18.50 to 36;" in refusal(whole, "18.4")
    assert "can be 51.389% to 100% (18.50 to 36 tokens) for a picture of 36" in refusal(whole, "50%")
    before = config_for_budget("100%", num_visual_tokens=36, num_layers=4, method="sts-s")
    assert "drops none of 36 visual tokens; leave the budget out" in refusal(before, "35")
    assert keeps_of_image(before, for_request(before, "100%"), 7) == (7, 7)


def test_a_bundle_that_drops_nothing_has_no_other_budget() -> None:
    unpruned = config_for_budget("100%", method="none", num_visual_tokens=576, num_layers=32, prune_layer=16)
    for budget in (64, "50%"):
        message = refusal(unpruned, budget)
        assert message.startswith(f"budget {budget} is unreachable: this bundle drops none of 576 visual tokens; leave the")
    assert for_request(unpruned, "100%").keeps(576) == for_request(unpruned, 576).keeps(576) == (576, 576)


def test_a_bundle_whose_budget_was_rounded_to_all_tokens_has_that_budget() -> None:
    whole = config_for_budget("90%", method="sts-s", num_visual_tokens=3, num_layers=4)
    assert (whole.keep_stage1, whole.keep_stage2) == (3, 3)
    for budget in ("90%", "85%", "100%"):
        assert for_request(whole, budget) == config_for_budget(budget, method="sts-s", num_visual_tokens=3, num_layers=4)
    assert "this bundle drops none of 3 visual tokens" in refusal(whole, "50%")


def test_counts() -> None:
    asked = for_request(EXPORTED, keep=(40, 30))
    assert (asked.keeps(576), asked.keeps(35), asked.budget) == ((40, 30), (35, 30), None)
    of_numpy: Any = np.array([96, 32])
    assert for_request(EXPORTED, keep=tuple(of_numpy)).keeps(576) == (96, 32)


def test_a_bundle_of_counts_takes_budgets() -> None:
    """Solved with the method's ratio, as an export would be, and no more than either count."""
    exported = config_for_counts(576, 32, 16, 96, 16)
    assert for_request(exported, "30").keeps(576) == config_for_budget("30", **MODEL).keeps(576) == (45, 15)
    assert "can be 1 to 33" in refusal(exported, "40")
    before = config_for_counts(576, 32, 16, 96, 96, method="sts-s")
    assert for_request(before, "30").keeps(576) == (30, 30)


WRONG_COUNTS: dict[str, tuple[Any, str]] = {
    "k": ((97, 32), "exported for K = 96 and K' = 32, and cannot keep 97,32"),
    "k-prime": ((96, 33), "exported for K = 96 and K' = 32, and cannot keep 96,33"),
    "zero": ((0, 0), "cannot keep 0,0: choose K from 1 to 96 and K' from 1 to 32, or export"),
    "zero-inside": ((50, 0), "cannot keep 50,0: choose K from 1 to 96 and K' from 1 to 32, or export"),
    "turned-round": ((20, 30), "stage 2 cannot keep 30 of the 20"),
    "one": ((20,), "keep is two whole numbers"),
    "three": ((20, 10, 5), "keep is two whole numbers"),
    "fractions": ((20.0, 10), "keep is two whole numbers"),
    "truth": ((True, True), "keep is two whole numbers"),
    "text": ("20", "keep is two whole numbers"),
    "lines": (("2\n0",), "keep is two whole numbers"),
    "number": (20, "keep is two whole numbers"),
}


@pytest.mark.parametrize(("keep", "said"), WRONG_COUNTS.values(), ids=WRONG_COUNTS.keys())
def test_wrong_counts(keep: Any, said: str) -> None:
    assert said in refusal(EXPORTED, keep=keep)


def test_counts_that_the_stages_cannot_have() -> None:
    assert "drops nothing before the LLM, so K = 576" in refusal(config_for_budget("100%", **MODEL), keep=(96, 32))
    inside = config_for_budget("400", stage1="keep-all", **MODEL)
    assert "drops nothing before the LLM, so K = 576" in refusal(inside, keep=(96, 32))
    assert for_request(inside, keep=(576, 100)).keeps(576) == (576, 100)
    assert "prunes before the LLM only" in refusal(config_for_budget("64", method="sts-s", **MODEL), keep=(48, 16))


def test_both_are_refused() -> None:
    assert "give either a budget" in refusal(EXPORTED, "32", (48, 16))


def test_everything_else_is_the_bundles() -> None:
    exported = config_for_budget("64", positions="original", anchor="first", **MODEL)
    asked = for_request(exported, "32")
    assert replace(asked, budget="64", keep_stage1=96, keep_stage2=32) == exported
