"""Methods: where each cuts, which of its stages a vision tower takes, and what contradicts it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sts_export.errors import BudgetError
from sts_export.json_records import decode, encode
from sts_export.pruning.choosing import StageChoice, choose_stages, config_for_budget, config_for_counts, list_methods
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.methods import METHODS
from sts_export.pruning.registry import find_method, method_names
from sts_export.pruning.stage1.cls_attention import ClsAttention
from sts_export.pruning.stage1.received_attention import ReceivedAttention

LLAVA_7B: dict[str, Any] = {"num_visual_tokens": 576, "num_layers": 32}

# method -> L of 32, 40, 28, 5 and 2 layers
PRUNE_LAYERS = {
    "sts": (16, 16, 14, 2, 1),
    "star": (16, 20, 14, 2, 1),
    "learnpruner": (12, 15, 11, 2, 1),  # 10.5 is rounded up, 1.875 to 2
    "starpro": (12, 15, 11, 2, 1),
    "fastv": (2, 2, 2, 2, 1),
    "dart": (2, 2, 2, 2, 1),
    "vscan": (16, 16, 14, 2, 1),
    "none": (16, 16, 14, 2, 1),
}


@pytest.mark.parametrize("name", PRUNE_LAYERS)
def test_prune_layers(name: str) -> None:
    assert tuple(find_method(name).layer(layers) for layers in (32, 40, 28, 5, 2)) == PRUNE_LAYERS[name]


def test_every_method_has_a_layer_on_either_side() -> None:
    for method in METHODS:
        assert all(1 <= method.layer(layers) < layers for layers in range(2, 130))


def test_the_methods_that_there_are() -> None:
    of_sts, others = ["sts", "sts-s"], ["star", "learnpruner", "fastv", "fastervlm", "visionzip", "divprune", "dart", "vscan"]
    others += ["hiprune", "starpro", "cdpruner", "random", "none"]
    assert [method.name for method in METHODS] == of_sts + others


@pytest.mark.parametrize(
    ("gives", "stage"),
    [
        (None, ClsAttention()),
        ({"cls_attention", "received_attention"}, ClsAttention()),
        ({"received_attention"}, ReceivedAttention()),
        (set(), ClsAttention()),  # whoever asks whether the tower gives what it needs is told what is preferred
    ],
)
def test_the_first_stage_that_the_tower_can_give(gives: set[str] | None, stage: Any) -> None:
    given = None if gives is None else frozenset(gives)
    assert choose_stages(StageChoice("fastervlm"), given).stage1 == stage
    made = config_for_budget("64", method="fastervlm", gives=given, **LLAVA_7B)
    assert (made.method, made.stage1) == ("fastervlm", stage)
    assert decode(PruningConfig, encode(made)) == made
    assert encode(made)["stage1"]["name"] == stage.name


def test_an_alternative_can_be_asked_for() -> None:
    everything = frozenset({"cls_attention", "received_attention"})
    choice = StageChoice("fastervlm", stage1="received-attention")
    assert choose_stages(choice, everything).stage1 == ReceivedAttention()
    with pytest.raises(BudgetError) as caught:
        choose_stages(StageChoice("fastervlm", stage1="keep-all"), everything)
    assert str(caught.value) == (
        "--stage1 keep-all is not that of method fastervlm (cls-attention or received-attention): leave --method or it out"
    )


def test_a_configuration_is_one_of_the_methods_pairs() -> None:
    made = config_for_budget("64", method="fastervlm", **LLAVA_7B)
    assert replace(made, stage1=ReceivedAttention()).stage1 == ReceivedAttention()
    with pytest.raises(BudgetError, match="star is received-attention and text-visual, not cls-attention and keep-all"):
        replace(made, method="star")


def test_positions() -> None:
    """Where nothing else is asked for, what DART keeps stays where it was."""
    positions = {name: choose_stages(StageChoice(name)).positions for name in ("sts", "fastv", "dart", "random", "none")}
    assert positions == dict.fromkeys(positions, "reindex") | {"dart": "keep"}
    assert config_for_counts(576, 32, None, 576, 64, method="dart").positions == "keep"
    assert config_for_counts(576, 32, None, 576, 64, method="dart", positions="reindex").positions == "reindex"


BUDGETS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "star": ({"budget": "64", "method": "star"}, (16, 96, 32)),
    "fastervlm": ({"budget": "64", "method": "fastervlm"}, (16, 64, 64)),
    "fastv": ({"budget": "64", "method": "fastv"}, (2, 576, 30)),  # (2 * 576 + 30 * 30) / 32 = 64.1
    "dart": ({"budget": "50%", "method": "dart"}, (2, 576, 269)),  # (2 * 576 + 30 * 269) / 32 = 288.2
    "random": ({"budget": "64", "method": "random"}, (16, 96, 32)),
    "none": ({"budget": "100%", "method": "none"}, (16, 576, 576)),
}


@pytest.mark.parametrize(("options", "expected"), BUDGETS.values(), ids=BUDGETS.keys())
def test_budgets_by_hand(options: dict[str, Any], expected: tuple[int, int, int]) -> None:
    made = config_for_budget(**options, **LLAVA_7B)
    assert (made.prune_layer, made.keep_stage1, made.keep_stage2) == expected


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "fastv-drops-before": ({"method": "fastv", "keep": (100, 50)}, "stage 1 keep-all keeps all 576 visual tokens, so K = N"),
    "fastv-too-little": ({"method": "fastv", "budget": "20"}, "can be 36.94 to 576 for this model where stage 1 keeps all"),
    "none-counts": ({"method": "none", "keep": (100, 50)}, "so K = N: give --keep 576,576"),
    "none-budget": ({"method": "none", "budget": "64"}, "method none prunes nothing: leave --budget out, or give 100%"),
    "none-share": ({"method": "none", "budget": "99%"}, "method none prunes nothing: leave --budget out, or give 100%"),
    "hiprune-inside": ({"method": "hiprune", "keep": (96, 32)}, "prunes before the LLM only, so K' = K: give --keep 96,96"),
    "another-stage": ({"method": "star", "stage2": "dart"}, "--stage2 dart is not that of method star (text-visual)"),
    "no-such-stage": ({"stage2": "last"}, "unknown stage 2 'last': choose one of dart, keep-all, last-token, random, text-vis"),
    "no-such-setting": ({"stage2": "dart:pivots=4"}, "dart has no setting 'pivots': it has none"),
    "no-such-setting-of-some": ({"stage2": "text-visual:layer=own"}, "has no setting 'layer': choose one of score_layer"),
    "no-such-value": ({"stage2": "text-visual:score_layer=both"}, "unknown score_layer 'both': choose one of own, next"),
}


@pytest.mark.parametrize(("options", "expected"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_what_does_not_go_together(options: dict[str, Any], expected: str) -> None:
    options = dict(options)
    with pytest.raises(BudgetError) as caught:
        if "keep" in options:
            config_for_counts(576, 32, None, *options.pop("keep"), **options)
        else:
            config_for_budget(options.pop("budget", "64"), **LLAVA_7B, **options)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_the_list_has_a_line_for_each_in_columns() -> None:
    lines = list_methods().splitlines()
    methods = lines[1 : lines.index("stage 1 (--stage1):")]
    assert [line.split()[0] for line in methods] == method_names()
    entries = [line for line in lines if line.startswith("  ") and not line.startswith("    ")]
    starts = {len(line) - len(line[2:].partition(" ")[2].lstrip()) for line in entries}
    assert len(starts) == 1 and max(map(len, lines)) <= 120
    assert any(line.endswith("FasterVLM: cls-attention or received-attention, then keep-all") for line in methods)
