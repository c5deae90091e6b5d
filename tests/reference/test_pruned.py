"""Pruned generation of every family: inside the LLM against masking, and which rows and scores decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sts_export.errors import RequestError
from sts_export.pruning.config import Positions, PruningConfig
from sts_export.pruning.stage2.last_token import ScoreLayer
from sts_export.reference import NEWLINE, Prompt, ReferenceModel, ReferenceResult, generate
from sts_export.testing.checkpoints import random_image
from tests.reference.helpers import CHECKPOINTS, config_for, masked_logits, own_inputs, surviving, user

Models = Callable[[str], ReferenceModel]
CHAT: list[dict[str, Any]] = [
    user("What is it?"),
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    user("And on the table?"),
]
IMAGES = [random_image(1, (200, 150)), random_image(2, (300, 40))]


def run(model: ReferenceModel, config: PruningConfig, steps: int = 6, **settings: Any) -> tuple[Prompt, ReferenceResult]:
    prompt = model.prepare(CHAT, IMAGES)
    return prompt, generate(model, prompt, (), config, steps, ignore_eos=True, **settings)


@pytest.mark.parametrize("score_layer", get_args(ScoreLayer))
@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_dropping_is_masking_and_the_cache_changes_nothing(models: Models, name: str, positions: Any, score_layer: Any) -> None:
    model = models(name)
    prune_layer = {"own": 2, "next": 3}[score_layer]
    config = config_for(model, 15, 5, prune_layer, positions=positions, score_layer=score_layer)
    prompt, result = run(model, config)
    newlines = sum(image.layout.count(NEWLINE) for image in prompt.images)
    text = len(prompt.ids) - sum(len(image.layout) for image in prompt.images)
    assert newlines if name in ("vicuna", "mistral") else not newlines
    assert [len(kept) for kept in result.kept_stage1] == [15, 15] and len(result.kept_stage2) == 10
    assert (result.prompt_tokens, result.upper_prompt_tokens) == (text + newlines + 30, text + newlines + 10)
    assert [sorted(set(kept)) for kept in result.kept_stage1] == result.kept_stage1
    first = result.num_visual_tokens[0]
    left = result.kept_stage1[0] + [first + token for token in result.kept_stage1[1]]
    assert sorted(set(result.kept_stage2)) == result.kept_stage2 and set(result.kept_stage2) <= set(left)
    assert 0 < sum(token < first for token in result.kept_stage2) < 10  # one TopK over both images, so no equal parts
    expected = masked_logits(model, own_inputs(model, CHAT, IMAGES), prompt, config, result)
    torch.testing.assert_close(result.logits, expected, atol=3e-4, rtol=1e-4)

    given: dict[str, Any] = {"kept_stage1": result.kept_stage1, "kept_stage2": result.kept_stage2}
    for settings in ({}, given):
        _, other = run(model, config, use_cache=False, **settings)
        assert other.token_ids == result.token_ids and other.kept_stage2 == result.kept_stage2
        torch.testing.assert_close(other.logits, result.logits, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_choice_changes_the_logits(models: Models, name: str) -> None:
    """Otherwise the test above would prove nothing."""
    model = models(name)

    def logits(**choices: Any) -> torch.Tensor:
        return run(model, config_for(model, 15, 5, **choices), 2)[1].logits

    base = logits()
    choices: list[dict[str, Any]] = [{"positions": "keep"}, {"score_layer": "next"}, {"anchor": "first"}]
    for choice in [*choices, {"anchor": "saliency"}] if "cls_attention" in model.gives else choices:
        assert (logits(**choice) - base).abs().max() > 0.02, choice


@pytest.mark.parametrize("score_layer", get_args(ScoreLayer))
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_last_prompt_token_scores(models: Models, name: str, score_layer: Any) -> None:
    """R(v) against the attention that transformers' eager layers return, at the right row and at well-known wrong ones."""
    model = models(name)
    config = config_for(model, 15, 5, 2, score_layer=score_layer)
    prompt, result = run(model, config, 1)
    assert result.trace.scores is not None and result.trace.positions is not None
    rows, _ = surviving(prompt, result.kept_stage1, ())
    visual = [
        row
        for row in range(len(rows))
        for image, start in zip(prompt.images, prompt.starts, strict=True)
        if 0 <= rows[row] - start < len(image.layout) and image.layout[rows[row] - start] != NEWLINE
    ]
    embeds = model.embed(prompt.ids)
    for image, start, kept, own in zip(
        prompt.images, prompt.starts, result.kept_stage1, result.trace.visual_embeds, strict=True
    ):
        for row, token in enumerate(image.layout, start):
            if token == NEWLINE:
                embeds[row] = model.newline()
            elif token in kept:
                embeds[row] = own[kept.index(token)]
    positions = result.trace.positions
    before = model.decoder.config._attn_implementation
    model.decoder.config._attn_implementation = "eager"
    try:
        ids = positions[:, None] if len(positions) == 3 else positions
        full: Any = model.decoder(inputs_embeds=embeds[None, rows], position_ids=ids, output_attentions=True)
    finally:
        model.decoder.config._attn_implementation = before
    attention = full.attentions[{"own": 1, "next": 2}[score_layer]][0].mean(dim=0)
    torch.testing.assert_close(result.trace.scores, attention[-1, visual], atol=1e-6, rtol=1e-4)
    best = result.trace.scores.sort(descending=True, stable=True).indices[:10].sort().values.tolist()
    first = result.num_visual_tokens[0]
    left = result.kept_stage1[0] + [first + token for token in result.kept_stage1[1]]
    assert result.kept_stage2 == [left[index] for index in best]

    # VScan's query: the number of ids with one per image, plus the visual tokens, minus one. Newlines push it off the end.
    unexpanded = len(prompt.ids) - sum(len(image.layout) - 1 for image in prompt.images)
    wrong = unexpanded - len(prompt.images) + len(visual) - 1
    if name in ("vicuna", "mistral"):
        assert wrong < len(rows) - 1
        assert (result.trace.scores - attention[wrong, visual]).abs().max() > 1e-4
    else:
        assert wrong == len(rows) - 1


@pytest.mark.parametrize("name", ["vicuna", "qwen"])
def test_shares_follow_each_image(models: Models, name: str) -> None:
    """A budget in percent is solved for each image's own N; a fixed one leaves small images whole."""
    model = models(name)
    largest = model.num_visual_tokens
    config = PruningConfig(largest, model.num_layers, 2, largest // 2, largest // 4, budget="37.5%", ratio=0.5)
    _, result = run(model, config, 1)
    counts = result.num_visual_tokens
    assert counts[0] != counts[1]
    assert [len(kept) for kept in result.kept_stage1] == [config.keeps(count)[0] for count in counts]
    assert len(result.kept_stage2) == sum(config.keeps(count)[1] for count in counts)
    fixed = config_for(model, min(counts) + 1, min(counts) + 1)
    _, result = run(model, fixed, 1)
    assert sorted(len(kept) for kept in result.kept_stage1) == [min(counts), min(counts) + 1]
    whole = counts.index(min(counts))
    assert result.trace.choices[whole] == [] and result.trace.choices[1 - whole] != []
    assert len(result.kept_stage2) == 2 * min(counts) + 1


@pytest.mark.parametrize("name", ["vicuna", "qwen"])
def test_given_sets(models: Models, name: str) -> None:
    model = models(name)
    config = config_for(model, 8, 4)
    first = model.prepare(CHAT, IMAGES).images[0].num_visual_tokens
    given: dict[str, Any] = {"kept_stage1": [[20, 3, 11], [7, 0]], "kept_stage2": [first + 7, 3]}
    _, result = run(model, config, 3, forced_tokens=[9, 8, 7], **given)
    assert (result.kept_stage1, result.kept_stage2) == ([[3, 11, 20], [0, 7]], [3, first + 7])
    assert result.token_ids == [9, 8, 7]
    for bad in ([[1]], [[1], []], [[1], [10**4]], [[1, 1], [1]], [[first], [1]]):
        with pytest.raises(RequestError):
            run(model, config, 1, kept_stage1=bad)
    with pytest.raises(RequestError, match="stage 2"):
        run(model, config, 1, kept_stage1=[[1], [2]], kept_stage2=[2])
    with pytest.raises(RequestError, match="new configuration"):
        run(model, PruningConfig(576, 9, 2, 96, 32), 1)


def test_a_sliding_window_is_not_overrun(models: Models) -> None:
    model = models("mistral")
    prompt = model.prepare("What is it?", [random_image(0)])
    model.sliding_window = len(prompt.ids) + 1
    try:
        assert len(generate(model, prompt, (), None, 2, ignore_eos=True).token_ids) == 2
        with pytest.raises(RequestError, match="sliding window"):
            generate(model, prompt, (), None, 3, ignore_eos=True)
    finally:
        model.sliding_window = None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["vicuna", "qwen"])
def test_half_precision_runs(name: str, dtype: Any, tmp_path: Path) -> None:
    write, spec = CHECKPOINTS[name]
    folder = write(tmp_path, dataclasses.replace(spec, dtype=dtype))
    exact, half = ReferenceModel.open(folder), ReferenceModel.open(folder, getattr(torch, dtype))
    config = config_for(exact, 12, 4)
    _, expected = run(exact, config, 4)
    given: dict[str, Any] = {"kept_stage1": expected.kept_stage1, "kept_stage2": expected.kept_stage2}
    _, result = run(half, config, 4, forced_tokens=expected.token_ids, **given)
    assert result.logits.dtype == torch.float32
    assert (result.logits - expected.logits).abs().max() < (0.15 if dtype == "float16" else 1.0)
    _, free = run(half, config, 1)
    assert [len(kept) for kept in free.kept_stage1] == [12, 12]
