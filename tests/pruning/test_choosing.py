"""What a user says of the stages: one meaning, however it is said; or one line that says what does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sts_export.errors import BudgetError
from sts_export.graphs.needs import OF_SELECTOR
from sts_export.json_records import decode, encode
from sts_export.pruning.choosing import check_needs, config_for_budget, config_for_counts
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.registry import find_stage1, own_stage_names
from sts_export.pruning.stage1.keep_all import KeepAll as KeepAllTokens
from sts_export.pruning.stage1.repulsion import Repulsion
from sts_export.pruning.stage2.keep_all import KeepAll
from sts_export.pruning.stage2.last_token import LastToken


def config(**options: Any) -> PruningConfig:
    return config_for_budget("64", num_visual_tokens=576, num_layers=32, **options)


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {"method": "sts", "stage1": "repulsion", "stage2": "last-token"}),
    "option": ({"anchor": "first"}, {"stage1": "repulsion:anchor=first"}),
    "options": (
        {"anchor": "saliency", "epsilon": 1e-3, "score_layer": "next"},
        {"stage1": "repulsion:anchor=saliency,epsilon=0.001", "stage2": "last-token:score-layer=next"},
    ),
    "mixed": ({"stage1": "repulsion:anchor=first", "epsilon": 0.5}, {"stage1": "repulsion:epsilon=0.5", "anchor": "first"}),
    "method": ({"method": "sts-s", "anchor": "first"}, {"method": "sts-s", "stage1": "repulsion:anchor=first"}),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_the_same_said_in_two_ways(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert config(**one) == config(**other)
    counts = (576, 32, 16, 96, 96)
    assert config_for_counts(*counts, **one) == config_for_counts(*counts, **other)


def test_a_pair_without_a_name_is_called_by_its_stages() -> None:
    made = config(stage2="keep-all", anchor="first")
    assert (made.method, made.stage1, made.stage2) == ("repulsion+keep-all", Repulsion("first"), KeepAll())
    assert decode(PruningConfig, encode(made)) == made


def test_the_method_keeps_its_name_whatever_its_settings() -> None:
    made = config(stage1="repulsion:epsilon=1", stage2="last-token:score_layer=next")
    assert (made.method, made.stage1, made.stage2) == ("sts", Repulsion(epsilon=1.0), LastToken("next"))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "setting-of-another-stage": (
        {"stage1": "keep-all", "epsilon": 1.0},
        "epsilon is a setting of stage 1 repulsion, not of keep-all: leave it out or choose --stage1 repulsion",
    ),
    "setting-of-another-stage-2": (
        {"stage2": "keep-all", "score_layer": "next"},
        "score_layer is a setting of stage 2 last-token, not of keep-all: leave it out or choose --stage2 last-token",
    ),
    "setting-of-none": ({"colour": "red"}, "no pruning stage has a setting 'colour': leave it out"),
    "twice": ({"stage1": "repulsion:anchor=first", "anchor": "first"}, "anchor is given with --stage1 and by itself"),
    "another-method": ({"method": "sts-s", "stage1": "keep-all"}, "--stage1 keep-all is not that of method sts-s (repulsion)"),
}


@pytest.mark.parametrize(("options", "expected"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_what_does_not_go_together(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(BudgetError) as caught:
        config(**options)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@dataclass(frozen=True)
class NeedsKeys(KeepAllTokens):
    name: ClassVar[str] = "needs-keys"
    summary: ClassVar[str] = "of a test"
    keeps_all: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"edges"})


def test_a_tower_that_lacks_what_a_stage_needs() -> None:
    """The refusal names settings that fit; where there are none, stages that ask nothing of the tower."""
    fitting = [name for name in own_stage_names("stage1") if find_stage1(name)().needs <= OF_SELECTOR]
    assert {"keep-all", "repulsion"} <= set(fitting) and "vscan" not in fitting
    check_needs(Repulsion("saliency"), frozenset({"cls_attention"}), "llava")
    check_needs(Repulsion("mean"), frozenset(), "qwen2_5_vl")
    for stage, expected in (
        (Repulsion("saliency"), "anchor saliency needs a CLS token, which qwen2_5_vl has not: choose mean or first"),
        (
            NeedsKeys(),
            f"stage 1 needs-keys needs edges, which qwen2_5_vl has not: choose --stage1 {' or '.join(fitting)}",
        ),
    ):
        with pytest.raises(BudgetError) as caught:
            check_needs(stage, frozenset(), "qwen2_5_vl")
        assert str(caught.value) == expected
