"""A budget that a request asks for: as a bundle exported at that budget answers it, and as the reference does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export import Pipeline
from sts_export.errors import BudgetError, PromptError, RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.result import GenerationResult
from sts_export.measuring.bench import BenchTask, PipelineRunner
from sts_export.pruning.budget import parse_budget
from sts_export.reference import ReferenceModel, generate
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.support.mixed_requests import IMAGES, PROMPTS, SQUARE, WIDE
from tests.support.mixed_requests import same as all_the_same

torch.set_num_threads(1)
NEW = 8
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(seed=40)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(seed=41)),
    "qwen": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(seed=42, min_pixels=3136)),
}
# What the bundle is exported for, and five budgets up to that.
EXPORTED: dict[str, dict[str, Any]] = {
    "llava": {"budget": "20", "max_visual_tokens": 72},
    "llava_next": {"budget": "50%", "max_visual_tokens": 360},
    "qwen": {"budget": "50%", "max_visual_tokens": 250},
}
BUDGETS = {
    "llava": ("20", "14", "25%", "7.5", "1"),
    "llava_next": ("50%", "33.3%", "12", "10%", "3"),
    "qwen": ("50%", "30%", "9", "12.5%", "1"),
}
CASES = [(family, budget) for family, budgets in BUDGETS.items() for budget in budgets]
# What a stage 1 that is not there leaves: the export itself, and what only the upper layers can drop.
UNPRUNED, INSIDE = "100%", "56%"


class Made:
    """Checkpoints, references and pipelines, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = cache(lambda family: WRITERS[family](folder / family))
        self.reference = cache(lambda family: ReferenceModel.open(self.checkpoint(family)))
        self.pipeline = cache(self._pipeline)
        self.largest = cache(lambda family: self.pipeline(family, EXPORTED[family]["budget"]))

    def _pipeline(self, family: str, budget: str) -> Pipeline:
        options = {**EXPORTED[family], "budget": budget, "max_prompt_tokens": 150, "max_new_tokens": NEW}
        output = self.folder / f"{family}-{budget.replace('%', 'pct')}"
        return Pipeline(export(ExportRequest(str(self.checkpoint(family)), output, **options)).folder, threads=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("budgets"))


def said(result: GenerationResult) -> dict[str, Any]:
    """All but times and the size of the caches."""
    return {name: value for name, value in asdict(result).items() if name not in ("timings_ms", "kv_cache_bytes")}


@pytest.mark.parametrize(("family", "budget"), CASES)
def test_equals_a_bundle_exported_at_that_budget(made: Made, family: str, budget: str) -> None:
    """Token by token and kept set by kept set, in caches of the same size as before."""
    largest, own = made.largest(family), made.pipeline(family, budget)
    assert largest.pruning(budget) == own.manifest.pruning
    expected = own.generate(PROMPTS, IMAGES, ignore_eos=True)
    actual = largest.generate(PROMPTS, IMAGES, ignore_eos=True, budget=budget)
    assert [said(result) for result in actual] == [said(result) for result in expected]
    assert {result.budget for result in actual} == {budget}
    rows = largest.manifest.capacities.rows
    assert {result.kv_cache_bytes for result in actual} == {largest.generate("What?").kv_cache_bytes}
    assert all(more >= less for more, less in zip(rows, own.manifest.capacities.rows, strict=True))
    if budget != EXPORTED[family]["budget"]:
        usual = largest.generate(PROMPTS, IMAGES, ignore_eos=True)
        assert [result.kept_stage1 for result in usual] != [result.kept_stage1 for result in actual]


@pytest.mark.parametrize(("family", "budget"), CASES)
def test_the_reference_agrees(made: Made, family: str, budget: str) -> None:
    largest, images = made.largest(family), [SQUARE, WIDE]
    ours = largest.generate("Which is larger?", images, ignore_eos=True, budget=budget)
    config = largest.pruning(budget)
    theirs = generate(made.reference(family), "Which is larger?", images, config, NEW, ignore_eos=True)
    assert (ours.kept_stage1, ours.kept_stage2) == (theirs.kept_stage1, theirs.kept_stage2)
    assert ours.token_ids == theirs.token_ids
    logits = torch.from_numpy(largest.score("Which is larger?", images, ours.token_ids, budget=budget))
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-3, atol=1e-3)
    counts = [image.num_tokens for image in map(largest.prepared, images)]
    wanted = sum(float(max(config.lowest(count), min(parse_budget(budget, count), Fraction(count)))) for count in counts)
    assert abs(ours.average_visual_tokens - wanted) <= len(images)


@pytest.mark.parametrize("family", WRITERS)
def test_requests_of_other_budgets_run_together(made: Made, family: str) -> None:
    largest = made.largest(family)
    budgets = [*BUDGETS[family], None, 2, None][: len(PROMPTS)]
    single = [
        largest.generate(prompt, () if images is None else images, ignore_eos=True, budget=budget)
        for prompt, images, budget in zip(PROMPTS, IMAGES, budgets, strict=True)
    ]
    all_the_same(largest.generate(PROMPTS, IMAGES, ignore_eos=True, budget=budgets), single)
    all_the_same(largest.generate(PROMPTS, IMAGES, ignore_eos=True, budget=budgets, batch_size=3), single)
    assert [result.budget for result in single] == [
        EXPORTED[family]["budget"] if budget is None else str(budget) for budget in budgets
    ]
    assert len({(result.visual_tokens.stage1, result.visual_tokens.stage2) for result in single}) > 4


def test_counts_of_a_request(made: Made) -> None:
    largest = made.largest("llava")
    keep = [(9, 5), None, (1, 1)]
    results = largest.generate(["What?"] * 3, [SQUARE] * 3, keep=keep)
    assert [(result.visual_tokens.stage1, result.visual_tokens.stage2) for result in results] == [(9, 5), (30, 10), (1, 1)]
    assert [result.budget for result in results] == [None, "20", None]
    layers = largest.manifest.model.decoder.num_layers
    split = largest.manifest.pruning.prune_layer
    assert results[0].average_visual_tokens == pytest.approx((9 * split + 5 * (layers - split)) / layers)
    theirs = generate(made.reference("llava"), "What?", [SQUARE], largest.pruning(keep=(9, 5)), NEW)
    assert (results[0].token_ids, results[0].kept_stage2) == (theirs.token_ids, theirs.kept_stage2)


@pytest.mark.parametrize("family", WRITERS)
def test_a_bundle_that_drops_nothing_before_the_llm(made: Made, family: str) -> None:
    """It has no stage 1: a smaller budget drops inside the LLM only.  The whole prompt keeps the unpruned positions."""
    whole = made.pipeline(family, UNPRUNED)
    assert not whole.manifest.pruning.drops_before
    ours = whole.generate("What?", SQUARE, ignore_eos=True, budget=INSIDE)
    config = whole.pruning(INSIDE)
    theirs = generate(made.reference(family), "What?", [SQUARE], config, NEW, ignore_eos=True)
    assert (ours.token_ids, ours.kept_stage2) == (theirs.token_ids, theirs.kept_stage2)
    assert ours.visual_tokens.stage2 < ours.visual_tokens.stage1 == ours.visual_tokens.total
    with pytest.raises(BudgetError, match="is unreachable: with this bundle"):
        whole.generate("What?", SQUARE, budget="20%")


def test_all_of_a_small_picture_has_the_unpruned_positions(made: Made) -> None:
    """What a request keeps decides, not what the bundle was exported for."""
    largest = made.largest("qwen")
    small = random_image(7, (56, 56))
    unpruned = made.pipeline("qwen", UNPRUNED).generate("What?", small, ignore_eos=True)
    ours = largest.generate("What?", small, ignore_eos=True, budget="100%")
    assert (ours.token_ids, ours.prompt_tokens) == (unpruned.token_ids, unpruned.prompt_tokens)
    assert ours.visual_tokens.stage2 == ours.visual_tokens.total < largest.manifest.pruning.keep_stage2


WRONG: dict[str, tuple[dict[str, Any], type[RequestError], str]] = {
    "above": ({"budget": "21"}, BudgetError, "number of visual tokens per layer can be 1 to 20;"),
    "above-as-a-share": ({"budget": "60%"}, BudgetError, "2.778% to 55.555% (1 to 20 tokens) for a picture of 36;"),
    "zero": ({"budget": 0}, BudgetError, "can be 1 to 20;"),
    "text": ({"budget": "few"}, BudgetError, "is not a plain number"),
    "list-for-one-prompt": ({"budget": [8]}, BudgetError, "not list"),
    "counts": ({"keep": (31, 10)}, BudgetError, "K = 30 and K' = 10, and cannot keep 31,10"),
    "both": ({"keep": (8, 4), "budget": 8}, BudgetError, "give either"),
}


@pytest.mark.parametrize(("asked", "kind", "line"), WRONG.values(), ids=WRONG.keys())
def test_refusals(made: Made, asked: dict[str, Any], kind: type[RequestError], line: str) -> None:
    largest = made.largest("llava")
    for ask in (largest.generate, largest.stream):
        with pytest.raises(kind) as caught:
            ask("What?", SQUARE, **asked)
        assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_benchmark_runs_at_the_budget(made: Made) -> None:
    folder = str(made.largest("llava").bundle.folder)
    with pytest.raises(BudgetError, match="budget 21 is unreachable"):
        PipelineRunner(folder, BenchTask(None, "What?", 2, 1, threads=1, budget="21")).run()


def test_a_list_has_an_entry_for_each_prompt(made: Made) -> None:
    largest = made.largest("llava")
    with pytest.raises(RequestError, match="2 prompts need a list of 2 entries for budget, or one for all, not 1"):
        largest.generate(["What?", "Where?"], [SQUARE, SQUARE], budget=[8])
    with pytest.raises(BudgetError, match="budget 30 is unreachable"):
        largest.generate(["What?", "Where?"], [SQUARE, SQUARE], budget=[8, 30])


def test_small_pictures_at_a_large_share_may_be_too_many(made: Made) -> None:
    """Each is within reach by itself."""
    largest, small = made.largest("qwen"), random_image(8, (84, 84))
    tokens = largest.prepared(small).num_tokens
    many = [small] * (1 + largest.manifest.capacities.rows[0] // tokens)
    assert largest.generate("What?", small, budget="100%").visual_tokens.stage2 == tokens
    with pytest.raises(PromptError, match="or give a smaller budget"):
        largest.generate("What?", many, budget="100%")
