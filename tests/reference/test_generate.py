"""LLaVA-1.5 in detail: every prune layer, layout and dtype, end tokens, sets from outside."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.errors import CheckpointError, RequestError
from sts_export.pruning.config import PruningConfig
from sts_export.reference import ReferenceModel, generate
from sts_export.testing.checkpoints import Layout, RandomLlava, random_image, random_prompt, write_random_llava
from tests.reference.helpers import config_for, masked_logits, own_inputs, transformers_generate, user

torch.set_num_threads(1)

SPECS = {
    "grouped": RandomLlava(),
    "plain": RandomLlava(
        seed=7, kv_heads=4, head_dim=12, layers=5, attention_bias=True, tied_embeddings=True, rope_theta=500.0, layout="4.x"
    ),
}
CHOICES = [
    {"positions": positions, "score_layer": score_layer, "anchor": anchor}
    for (positions, score_layer), anchor in zip(
        itertools.product(("reindex", "keep"), ("own", "next")), ("mean", "saliency", "first", "mean"), strict=True
    )
]


@pytest.fixture(scope="module", params=list(SPECS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel.open(write_random_llava(tmp_path_factory.mktemp(request.param), SPECS[request.param]))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel.open(write_random_llava(tmp_path_factory.mktemp("grouped_only"), SPECS["grouped"]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pruning", [None, "everything kept", "uncached"])
def test_unpruned_is_transformers(model: ReferenceModel, seed: int, pruning: str | None) -> None:
    image, question = random_image(seed), random_prompt(seed)
    inputs = own_inputs(model, [user(question)], [image])
    tokens, logits = transformers_generate(model, 10, **inputs)
    config = None if pruning is None else config_for(model, 36, 36)
    result = generate(model, question, [image], config, 10, use_cache=pruning != "uncached", ignore_eos=True)
    assert result.token_ids == tokens
    assert len(set(tokens)) > 4
    torch.testing.assert_close(result.logits, logits, atol=2e-4, rtol=1e-4)
    assert result.prompt_tokens == result.upper_prompt_tokens == inputs["input_ids"].shape[1]
    assert result.kept_stage1 == [list(range(36))] and result.kept_stage2 == list(range(36))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
def test_text_only_is_transformers(model: ReferenceModel, pruned: bool, use_cache: bool) -> None:
    inputs = model.processor.tokenizer("USER: What is it? ASSISTANT:", return_tensors="pt")
    tokens, logits = transformers_generate(model, 8, **inputs)
    config = config_for(model, 9, 3) if pruned else None
    result = generate(model, "What is it?", (), config, 8, use_cache=use_cache, ignore_eos=True)
    assert result.token_ids == tokens
    torch.testing.assert_close(result.logits, logits, atol=2e-4, rtol=1e-4)
    assert (result.kept_stage1, result.kept_stage2) == ([], [])


def test_stage1_alone_is_transformers_on_the_shorter_prompt(model: ReferenceModel) -> None:
    prompt = model.prepare(random_prompt(1), [random_image(1)])
    config = config_for(model, 12, 12, method="sts-s")
    result = generate(model, prompt, (), config, 8, ignore_eos=True)
    everything = model.model.get_image_features(pixel_values=prompt.images[0].pixel_values).pooler_output[0]
    start = prompt.starts[0]
    parts = [model.embed(prompt.ids[:start]), everything[result.kept_stage1[0]], model.embed(prompt.ids[start + 36 :])]
    embeds = torch.cat(parts)
    tokens, logits = transformers_generate(model, 8, inputs_embeds=embeds[None])
    assert result.token_ids == tokens
    torch.testing.assert_close(result.logits, logits, atol=2e-4, rtol=1e-4)
    assert result.kept_stage2 == result.kept_stage1[0]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(choices.values()))
@pytest.mark.parametrize("prune_layer", [1, 2, 3])
def test_dropping_is_masking_and_the_cache_changes_nothing(
    model: ReferenceModel, choices: dict[str, Any], prune_layer: int
) -> None:
    image, question = random_image(prune_layer), random_prompt(prune_layer)
    prompt, inputs = model.prepare(question, [image]), own_inputs(model, [user(question)], [image])
    config = dataclasses.replace(config_for(model, 15, 5, **choices), prune_layer=prune_layer)
    result = generate(model, prompt, (), config, 8, ignore_eos=True)
    torch.testing.assert_close(result.logits, masked_logits(model, inputs, prompt, config, result), atol=2e-4, rtol=1e-4)
    assert len(result.kept_stage1[0]) == 15 and len(result.kept_stage2) == 5
    assert set(result.kept_stage2) <= set(result.kept_stage1[0])
    assert result.kept_stage2 == sorted(result.kept_stage2) and result.kept_stage1[0] == sorted(result.kept_stage1[0])
    assert result.prompt_tokens - result.upper_prompt_tokens == 10
    assert result.trace.hidden is not None and len(result.trace.hidden) == result.upper_prompt_tokens

    uncached = generate(model, prompt, (), config, 8, use_cache=False, ignore_eos=True)
    forced = generate(
        model,
        prompt,
        (),
        config,
        8,
        use_cache=False,
        ignore_eos=True,
        kept_stage1=result.kept_stage1,
        kept_stage2=result.kept_stage2,
    )
    for other in (uncached, forced):
        assert other.token_ids == result.token_ids and other.kept_stage2 == result.kept_stage2
        torch.testing.assert_close(other.logits, result.logits, atol=2e-4, rtol=1e-4)


def test_every_choice_changes_the_logits(grouped: ReferenceModel) -> None:
    """Otherwise the tests above would prove nothing."""
    prompt = grouped.prepare(random_prompt(0), [random_image(0)])

    def logits(**choices: Any) -> torch.Tensor:
        return generate(grouped, prompt, (), config_for(grouped, 15, 5, **choices), 2, ignore_eos=True).logits

    base = logits()
    for choices in ({"positions": "keep"}, {"score_layer": "next"}, {"anchor": "first"}, {"anchor": "saliency"}):
        assert (logits(**choices) - base).abs().max() > 0.05, choices


def test_given_sets_and_tokens(grouped: ReferenceModel) -> None:
    image, question = random_image(2), random_prompt(2)
    prompt, inputs = grouped.prepare(question, [image]), own_inputs(grouped, [user(question)], [image])
    config = config_for(grouped, 8, 4)
    given: dict[str, Any] = {"kept_stage1": [[30, 3, 20, 11]], "kept_stage2": [20, 3]}
    result = generate(grouped, prompt, (), config, 6, forced_tokens=[9, 8, 7, 10], **given)
    assert (result.kept_stage1, result.kept_stage2, result.token_ids) == ([[3, 11, 20, 30]], [3, 20], [9, 8, 7, 10])
    torch.testing.assert_close(result.logits, masked_logits(grouped, inputs, prompt, config, result), atol=2e-4, rtol=1e-4)
    impossible: list[list[list[int]]] = [[[]], [[1, 1]], [[36]], [[-1]], [[1], [2]]]
    for bad in impossible:
        with pytest.raises(RequestError):
            generate(grouped, prompt, (), config, 1, kept_stage1=bad)
    with pytest.raises(RequestError, match="stage 2"):
        generate(grouped, prompt, (), config, 1, kept_stage1=[[1, 2]], kept_stage2=[3])
    with pytest.raises(RequestError, match="nothing is pruned inside"):
        generate(grouped, prompt, (), None, 1, kept_stage2=[3])
    with pytest.raises(RequestError, match="new configuration"):
        generate(grouped, prompt, (), PruningConfig(36, 5, 2, 12, 4), 1)


def test_end_token(grouped: ReferenceModel) -> None:
    free = generate(grouped, "Where?", [random_image(3)], None, 6, ignore_eos=True)
    assert free.finish_reason == "length" and len(free.token_ids) == 6
    before = grouped.eos_tokens
    try:
        grouped.eos_tokens = frozenset([free.token_ids[3]])
        stopped = generate(grouped, "Where?", [random_image(3)], None, 6)
        ignored = generate(grouped, "Where?", [random_image(3)], None, 6, ignore_eos=True)
    finally:
        grouped.eos_tokens = before
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert stopped.finish_reason == "stop" and len(stopped.logits) == len(stopped.token_ids)
    assert ignored.token_ids == free.token_ids


@pytest.mark.parametrize("layout", ["4.x", "memory-4.52", "memory-5.x", "flat"])
def test_every_layout_opens_to_the_same_model(grouped: ReferenceModel, tmp_path: Path, layout: Layout) -> None:
    spec = dataclasses.replace(SPECS["grouped"], layout=layout, max_shard_size="100KB")
    folder = write_random_llava(tmp_path, spec)
    assert len(list(folder.glob("*.safetensors"))) > 2
    other = ReferenceModel.open(folder)
    for (name, left), (_, right) in zip(grouped.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert torch.equal(left, right), name
    assert other.prepare("What?", [random_image(0)]).ids == grouped.prepare("What?", [random_image(0)]).ids


def test_checkpoints_follow_their_seed(tmp_path: Path) -> None:
    spec = RandomLlava()
    first, again, other = (
        load_file(write_random_llava(tmp_path / str(index), dataclasses.replace(spec, seed=seed)) / "model.safetensors")
        for index, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs(tmp_path: Path, dtype: Any) -> None:
    folder = write_random_llava(tmp_path, RandomLlava(dtype=dtype))
    exact = ReferenceModel.open(folder)
    half = ReferenceModel.open(folder, getattr(torch, dtype))
    config = config_for(exact, 12, 4)
    expected = generate(exact, "What is it?", [random_image(1)], config, 5, ignore_eos=True)
    given: dict[str, Any] = {"kept_stage1": expected.kept_stage1, "kept_stage2": expected.kept_stage2}
    result = generate(half, "What is it?", [random_image(1)], config, 5, forced_tokens=expected.token_ids, **given)
    assert result.logits.dtype == torch.float32
    assert (result.logits - expected.logits).abs().max() < (0.05 if dtype == "float16" else 0.5)


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    folder = write_random_llava(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("multi_modal_projector.linear_2.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing keys"):
        ReferenceModel.open(folder)


def test_unknown_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        ReferenceModel.open(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(CheckpointError, match="'qwen3_vl' has no reference"):
        ReferenceModel.open(tmp_path)
