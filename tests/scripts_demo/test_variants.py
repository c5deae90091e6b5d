"""The tables: their variants are what sts_export can do, and their counts are the budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.demo_results.planning import Cell, Model, cell, cells, read_model, request
from scripts.demo_results.variants import BUDGETS, STS, TABLES, UNPRUNED, Table, Variant, find_table
from sts_export.adapters.opening import open_model
from sts_export.errors import BudgetError
from sts_export.exporting.plan import plan_export
from sts_export.pruning.choosing import config_for_budget
from sts_export.pruning.methods import METHODS
from sts_export.pruning.per_request import for_request

all_tables = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


@pytest.fixture(scope="module")
def demo() -> Model:
    return read_model("demo")


def of_layers(layers: int) -> Model:
    return replace(read_model("demo"), layers=layers)


@all_tables
def test_every_bundle_can_be_exported_and_has_every_count(table: Table, demo: Model) -> None:
    checkpoint = open_model(demo.folder)
    for own in cells(table, demo):
        plan = plan_export(request(own.variant, demo), checkpoint)
        asked = for_request(plan.pruning, keep=own.keep)
        assert asked.average == own.tokens
        assert plan.capacities.visual_tokens == 2 * 576
        assert (plan.capacities.prompt_tokens, plan.capacities.new_tokens) == (64, 16)


@all_tables
def test_rows_have_names_of_their_own(table: Table, demo: Model) -> None:
    names = [(own.variant.name, own.budget) for own in cells(table, demo)]
    assert len(set(names)) == len(names)
    assert table.base in {name for name, _ in names}
    assert {name for pair in table.pairs for name in pair} <= {name for name, _ in names}


def test_every_method_is_measured() -> None:
    table = find_table("methods")
    assert [*(variant.method for variant in table.variants), UNPRUNED.method] == [method.name for method in METHODS]


@all_tables
def test_counts_are_those_of_an_export_at_the_budget(table: Table, demo: Model) -> None:
    for own in cells(table, demo):
        variant = own.variant
        if own.budget is None:
            assert own.keep == (576, 576) and own.tokens == 576
            continue
        # Two layers of all tokens are as much as this on average.
        late = variant.name in ("fastv", "dart") and own.budget <= 2 * 576 / demo.layers
        assert own.reached == (not late and variant.name != "without stage 1")
        if own.reached:
            assert abs(own.tokens - own.budget) < 1
        if own.reached and variant.ratio is None and variant.eighths is None and not variant.choices:
            solved = config_for_budget(
                str(own.budget), num_visual_tokens=576, num_layers=demo.layers, gives=demo.gives, method=variant.method
            )
            assert own.keep == (solved.keep_stage1, solved.keep_stage2)


def test_a_ratio_is_the_one_of_the_counts(demo: Model) -> None:
    variants = [variant for variant in find_table("ablations-64").variants if variant.ratio is not None]
    assert [variant.ratio for variant in variants] == [0.2, 0.3, 0.4, 0.5, 0.6]
    for variant in variants:
        first, second = cell(variant, 64, demo).keep
        assert variant.ratio is not None and abs(second - variant.ratio * first) <= 1
        assert request(variant, demo) == request(STS, demo)


@pytest.mark.parametrize(("layers", "expected"), [(8, [2, 3, 4, 5, 6]), (32, [8, 12, 16, 20, 24]), (2, [1, 1, 1, 1, 1])])
def test_prune_layers_follow_the_model(layers: int, expected: list[int]) -> None:
    own = of_layers(layers)
    variants = [variant for variant in find_table("ablations-64").variants if variant.name.startswith("prune layer")]
    half = STS.eighths or layers // 2
    assert [request(variant, own).prune_layer or half for variant in variants] == expected


def test_without_stage_1_what_is_kept_inside_is_that_of_sts(demo: Model) -> None:
    without = next(variant for variant in find_table("ablations-64").variants if variant.name == "without stage 1")
    assert cell(without, 64, demo).keep == (576, 32)
    assert request(without, demo).prune_layer == demo.layers // 2
    # A method of its own keeps the budget's number.
    assert cell(Variant("fastv", method="fastv"), 64, demo) == Cell(
        Variant("fastv", method="fastv"), 64, (576, 64), (2 * 576 + (demo.layers - 2) * 64) / demo.layers, reached=False
    )


def test_exports_do_not_depend_on_names_and_hold_the_largest_budget(demo: Model) -> None:
    assert request(replace(STS, name="other"), demo) == request(STS, demo)
    assert request(STS, demo).keep == cell(STS, BUDGETS[0], demo).keep


def test_what_is_impossible_is_noticed(demo: Model) -> None:
    with pytest.raises(BudgetError, match="no pruning stage has a setting"):
        cell(Variant("x", choices=(("anchro", "first"),)), 64, demo)
