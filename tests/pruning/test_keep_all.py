"""Stages that drop nothing: compared with the reference, alone and in a batch; and how budgets are split without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from sts_export import Pipeline
from sts_export.errors import BudgetError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.pruning.choosing import config_for_budget, config_for_counts
from sts_export.pruning.stage1.keep_all import KeepAll
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_qwen2_5_vl,
)
from sts_export.verification.answers import verify

torch.set_num_threads(1)
PAIRS: dict[str, dict[str, Any]] = {
    "inside": {"budget": "70%", "stage1": "keep-all"},
    "before": {"budget": "30%", "stage2": "keep-all"},
    "nothing": {"stage1": "keep-all", "stage2": "keep-all"},
}
MODEL: dict[str, Any] = {"num_visual_tokens": 576, "num_layers": 32, "prune_layer": 16}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder: Path = tmp_path_factory.mktemp("keep_all")
    sources = {
        "llava": write_random_llava(folder / "llava", RandomLlava(layers=3, vision_layers=2)),
        "qwen2_5_vl": write_random_qwen2_5_vl(folder / "qwen2_5_vl", RandomQwen25VL(layers=3)),
    }
    return {
        (family, name): export(
            ExportRequest(str(source), folder / f"{family}-{name}", max_prompt_tokens=90, max_new_tokens=10, **options)
        ).folder
        for family, source in sources.items()
        for name, options in PAIRS.items()
    }


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_reference_agrees(bundles: dict[tuple[str, str], Path], family: str, name: str) -> None:
    report = verify(bundles[family, name], pairs=2, max_new_tokens=4)
    assert report.passed and all(pair.stage1_equal and pair.stage2_equal for pair in report.pairs)


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_kept(bundles: dict[tuple[str, str], Path], name: str) -> None:
    pipeline = Pipeline(bundles["llava", name])
    pruning = pipeline.manifest.pruning
    result = pipeline.generate("What is it?", random_image(1), max_new_tokens=2)
    assert [len(kept) for kept in result.kept_stage1] == [pruning.keep_stage1]
    assert len(result.kept_stage2) == pruning.keep_stage2
    if name != "before":
        assert result.kept_stage1 == [list(range(36))]
    if name != "inside":
        assert result.kept_stage2 == result.kept_stage1[0]


@pytest.mark.parametrize("name", PAIRS)
def test_a_batch_with_padding_is_answered_as_each_alone(bundles: dict[tuple[str, str], Path], name: str) -> None:
    pipeline = Pipeline(bundles["llava", name])
    prompts, pictures = ["What?", "What is to be seen in this picture here?"], [random_image(1), random_image(2)]
    together = pipeline.generate(prompts, images=pictures, max_new_tokens=5, ignore_eos=True)
    for prompt, picture, result in zip(prompts, pictures, together, strict=True):
        alone = pipeline.generate(prompt, picture, max_new_tokens=5, ignore_eos=True)
        assert (result.token_ids, result.kept_stage2) == (alone.token_ids, alone.kept_stage2)


def test_no_attention_is_computed_to_keep_everything(bundles: dict[tuple[str, str], Path]) -> None:
    model = onnx.load(bundles["llava", "before"] / "llm_lower.onnx", load_external_data=False)
    assert not model.functions and not {"TopK", "Softmax"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"budget": "300", "stage1": "keep-all"}, (576, 24)),
        ({"budget": "75%", "stage1": "keep-all"}, (576, 288)),
        ({"budget": "64", "stage2": "keep-all"}, (64, 64)),
        ({"budget": "100%", "stage1": "keep-all", "stage2": "keep-all"}, (576, 576)),
        ({"budget": "576", "stage1": "keep-all", "stage2": "keep-all"}, (576, 576)),
    ],
    ids=str,
)
def test_budgets_by_hand(options: dict[str, Any], keeps: tuple[int, int]) -> None:
    config = config_for_budget(**options, **MODEL)
    assert (config.keep_stage1, config.keep_stage2) == keeps


@pytest.mark.parametrize("budget", ["51%", "70%", "100%"])
def test_shares_of_smaller_pictures_keep_all_before(budget: str) -> None:
    config = config_for_budget(budget, num_visual_tokens=150, num_layers=8, prune_layer=4, stage1="keep-all")
    for tokens in range(1, 151):
        keep1, keep2 = config.keeps(tokens)
        share = float(budget.rstrip("%")) / 100 * tokens
        assert keep1 == tokens and 1 <= keep2 <= tokens
        others = [kept for kept in range(1, tokens + 1) if abs((tokens + kept) / 2 - share) < abs((tokens + keep2) / 2 - share)]
        assert not others


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too-little": ({"budget": "64", "stage1": "keep-all"}, "can be 288.50 to 576 for this model"),
    "too-small-a-share": ({"budget": "20%", "stage1": "keep-all"}, "can be 50.0869% to 100% (288.50 to 576 tokens)"),
    "nothing-to-prune": ({"budget": "64", "stage1": "keep-all", "stage2": "keep-all"}, "prunes nothing: leave --budget out"),
}


@pytest.mark.parametrize(("options", "expected"), WRONG.values(), ids=WRONG.keys())
def test_unreachable_budgets(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(BudgetError) as caught:
        config_for_budget(**options, **MODEL)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_counts_that_drop_something_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"stage 1 keep-all keeps all 576 visual tokens, so K = N: give --keep 576,K'"):
        config_for_counts(576, 32, 16, 96, 32, stage1="keep-all")
    with pytest.raises(BudgetError, match=r"so K = N: give --keep 576,576"):
        config_for_counts(576, 32, 16, 96, 32, stage1="keep-all", stage2="keep-all")
    with pytest.raises(BudgetError, match=r"prunes before the LLM only, so K' = K: give --keep 96,96"):
        config_for_counts(576, 32, 16, 96, 32, stage2="keep-all")
    with pytest.raises(BudgetError, match=r"method none prunes nothing, so K' = K: give --keep 576,576"):
        config_for_counts(576, 32, 16, 576, 32, stage1="keep-all", stage2="keep-all")


def test_what_chooses_nothing_needs_no_room() -> None:
    assert KeepAll().scratch_bytes(5, 16384) == 0
