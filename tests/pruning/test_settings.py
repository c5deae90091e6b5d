"""Settings of stages as they are written, checked and kept."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import BudgetError
from sts_export.pruning.settings import describe_stage, make_stage, read_settings, settings_of, split_spec
from sts_export.pruning.stage import Stage1
from sts_export.pruning.stage1.keep_all import KeepAll
from sts_export.pruning.stage1.repulsion import Repulsion

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@dataclass(frozen=True)
class Every(KeepAll):
    """One setting of each type."""

    name: ClassVar[str] = "every"
    summary: ClassVar[str] = "of a test"
    count: int
    share: float = 0.5
    merge: bool = False
    kind: Literal["near", "far"] = "near"
    layer: Literal[9, 16] = 9
    label: str = "x"


values = st.fixed_dictionaries(
    {
        "count": st.integers(-(10**9), 10**9),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "merge": st.booleans(),
        "kind": st.sampled_from(["near", "far"]),
        "layer": st.sampled_from([9, 16]),
        "label": st.text("abc-_.:", min_size=1),
    }
)


def parsed(text: str) -> Stage1:
    name, written = split_spec(text)
    assert name == "every"
    return make_stage(Every, read_settings(Every, written))


@fixed
@given(values, st.booleans())
def test_what_is_written_is_what_is_meant(chosen: dict[str, Any], spaces: bool) -> None:
    comma, equals = (" , ", " = ") if spaces else (",", "=")
    text = "every:" + comma.join(f"{key}{equals}{value}" for key, value in chosen.items())
    stage = parsed(text)
    assert settings_of(stage) == chosen
    assert [type(value) for value in settings_of(stage).values()] == [int, float, bool, str, int, str]
    assert make_stage(Every, json.loads(json.dumps(settings_of(stage)))) == stage


@fixed
@given(st.text(max_size=40))
def test_any_text_is_a_stage_or_one_line(text: str) -> None:
    try:
        name, written = split_spec(text)
        make_stage(Repulsion, read_settings(Repulsion, written))
    except BudgetError as error:
        assert str(error).splitlines() == [str(error)]
    else:
        assert ":" not in name


WRONG = {
    "every:count": "is not NAME or NAME:key=value,key=value",
    "every:": "is not NAME or NAME:key=value,key=value",
    "every:count=": "is not NAME or NAME:key=value,key=value",
    "every:=3": "is not NAME or NAME:key=value,key=value",
    "every:count=3,": "is not NAME or NAME:key=value,key=value",
    "every:count=3,count=4": "gives 'count' twice",
    "every:count=3,colour=red": "every has no setting 'colour': choose one of count, share, merge, kind, layer, label",
    "every:count=3.5": "count must be a whole number, not '3.5'",
    "every:count=three": "count must be a whole number, not 'three'",
    "every:count=3,share=much": "share must be a number, not 'much'",
    "every:count=3,share=nan": "share must be a finite number, not nan",
    "every:count=3,share=1e999": "share must be a finite number, not inf",
    "every:count=3,merge=2": "merge must be true or false, not '2'",
    "every:count=3,kind=middle": "unknown kind 'middle': choose one of near, far",
    "every:count=3,layer=10": "unknown layer '10': choose one of 9, 16",
    "every:share=1": "every needs a value of count: give every:count=…",
}


@pytest.mark.parametrize(("text", "expected"), WRONG.items())
def test_what_is_written_wrongly_is_one_line(text: str, expected: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parsed(text)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given_",
    [
        *({"count": value} for value in ("3", 3.0, True, None)),
        *({"count": 3, "share": value} for value in ("0.5", True, math.nan)),
        *({"count": 3, "layer": value} for value in ("9", 9.0, 10)),
        *({"count": 3, "kind": value} for value in (["near"], None)),
        {"count": 3, "merge": 1},
        {"count": 3, "label": 5},
    ],
    ids=str,
)
def test_values_of_other_types_are_refused(given_: dict[str, Any]) -> None:
    """A manifest may hold anything."""
    with pytest.raises(BudgetError) as caught:
        make_stage(Every, given_)
    assert "\n" not in str(caught.value)


def test_whole_numbers_and_hyphens_will_do() -> None:
    assert settings_of(make_stage(Every, {"count": 1, "share": 2}))["share"] == 2.0
    assert split_spec("last-token:score-layer=next") == ("last-token", {"score_layer": "next"})
    assert split_spec(" keep-all ") == ("keep-all", {})


@pytest.mark.parametrize("epsilon", [0.0, -1e-6, math.nan, math.inf, 1e-40])
def test_epsilon_is_a_number_that_float32_bears(epsilon: float) -> None:
    with pytest.raises(BudgetError, match="epsilon must be a finite number"):
        Repulsion(epsilon=epsilon)


def test_stages_in_words() -> None:
    assert describe_stage(Repulsion()) == "repulsion (anchor mean, epsilon 1e-06)"
    assert describe_stage(KeepAll()) == "keep-all"
