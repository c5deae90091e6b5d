"""Generation against transformers: unpruned, pruned before the LLM, and pruned inside it by masking."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.errors import CheckpointError, PromptError, RequestError
from sts_export.pruning import PruningConfig
from sts_export.reference import Prompt, ReferenceModel, ReferenceResult, generate
from tests.checkpoints import Layout, RandomLlava, random_image, random_prompt, write_random_llava

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


def config_for(model: ReferenceModel, keep1: int, keep2: int, **choices: Any) -> PruningConfig:
    return PruningConfig(model.num_visual_tokens, model.num_layers, 2, keep1, keep2, **choices)


def transformers_generate(model: ReferenceModel, steps: int, **inputs: Any) -> tuple[list[int], torch.Tensor]:
    out = model.model.generate(
        **inputs,
        max_new_tokens=steps,
        eos_token_id=10**6,  # never
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, -steps:].tolist(), torch.cat(out.logits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pruning", [None, "everything kept", "uncached"])
def test_unpruned_is_transformers(model: ReferenceModel, seed: int, pruning: str | None) -> None:
    image, question = random_image(seed), random_prompt(seed)
    text = f"USER: <image>\n{question} ASSISTANT:"
    inputs = model.processor(images=image, text=text, return_tensors="pt")
    tokens, logits = transformers_generate(model, 10, **inputs)
    config = None if pruning is None else config_for(model, 36, 36)
    result = generate(model, question, [image], config, 10, use_cache=pruning != "uncached", ignore_eos=True)
    assert result.token_ids == tokens
    assert len(set(tokens)) > 4
    torch.testing.assert_close(result.logits, logits, atol=2e-4, rtol=1e-4)
    assert result.prompt_tokens == result.upper_prompt_tokens == inputs["input_ids"].shape[1]
    assert result.kept_stage1 == [list(range(36))] and result.kept_stage2 == list(range(36))
    # Prepared ids, one <image> or all of them, are the same prompt.
    expanded = model.split(inputs["input_ids"], inputs["pixel_values"])
    single = model.prepare(text, [image], chat=False)
    assert (expanded.before, expanded.after) == (single.before, single.after)
    assert generate(model, expanded, (), config, 10, ignore_eos=True).token_ids == tokens


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
    assert prompt.pixel_values is not None
    everything = model.model.get_image_features(pixel_values=prompt.pixel_values).pooler_output[0]
    embeds = torch.cat([model.embed(prompt.before), everything[result.kept_stage1[0]], model.embed(prompt.after)])
    tokens, logits = transformers_generate(model, 8, inputs_embeds=embeds[None])
    assert result.token_ids == tokens
    torch.testing.assert_close(result.logits, logits, atol=2e-4, rtol=1e-4)
    assert result.kept_stage2 == result.kept_stage1[0]


def masked_logits(model: ReferenceModel, prompt: Prompt, config: PruningConfig, result: ReferenceResult) -> torch.Tensor:
    """Logits of all steps from one run of transformers' whole decoder in which nothing is dropped.

    In the upper layers, hooks hide the dropped rows with a mask and give the others their positions.
    """
    embeds = torch.cat(
        [
            model.embed(prompt.before),
            model.project(result.trace.visual_features[result.kept_stage1[0]]),  # type: ignore[index]
            model.embed(prompt.after),
            model.embed(result.token_ids[:-1]),
        ]
    )[None]
    length = embeds.shape[1]
    alive = torch.ones(length, dtype=torch.bool)
    for index, token in enumerate(result.kept_stage1[0]):
        alive[len(prompt.before) + index] = token in result.kept_stage2
    positions = torch.arange(length) if config.positions == "keep" else (alive.cumsum(0) - 1).clamp(min=0)
    blocked = torch.ones(length, length, dtype=torch.bool).triu(1) | ~alive[None, :]
    blocked &= ~torch.eye(length, dtype=torch.bool)  # dropped rows look at themselves; nobody reads them
    mask = torch.zeros(1, 1, length, length).masked_fill(blocked, torch.finfo(torch.float32).min)

    def upper(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rotary = model.decoder.rotary_emb(embeds, position_ids=positions[None])
        return args, {**kwargs, "attention_mask": mask, "position_embeddings": rotary}

    hooks = [layer.register_forward_pre_hook(upper, with_kwargs=True) for layer in model.decoder.layers[config.prune_layer :]]
    try:
        hidden = model.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
    finally:
        for hook in hooks:
            hook.remove()
    logits: torch.Tensor = model.model.lm_head(hidden[-len(result.token_ids) :]).float()
    return logits


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(choices.values()))
@pytest.mark.parametrize("prune_layer", [1, 2, 3])
def test_dropping_is_masking_and_the_cache_changes_nothing(
    model: ReferenceModel, choices: dict[str, Any], prune_layer: int
) -> None:
    prompt = model.prepare(random_prompt(prune_layer), [random_image(prune_layer)])
    config = dataclasses.replace(config_for(model, 15, 5, **choices), prune_layer=prune_layer)
    result = generate(model, prompt, (), config, 8, ignore_eos=True)
    torch.testing.assert_close(result.logits, masked_logits(model, prompt, config, result), atol=2e-4, rtol=1e-4)
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
    prompt = grouped.prepare(random_prompt(2), [random_image(2)])
    config = config_for(grouped, 8, 4)
    given: dict[str, Any] = {"kept_stage1": [[30, 3, 20, 11]], "kept_stage2": [20, 3]}
    result = generate(grouped, prompt, (), config, 6, forced_tokens=[9, 8, 7, 10], **given)
    assert (result.kept_stage1, result.kept_stage2, result.token_ids) == ([[3, 11, 20, 30]], [3, 20], [9, 8, 7, 10])
    torch.testing.assert_close(result.logits, masked_logits(grouped, prompt, config, result), atol=2e-4, rtol=1e-4)
    impossible: list[list[list[int]]] = [[[]], [[1, 1]], [[36]], [[-1]], [[1], [2]]]
    for bad in impossible:
        with pytest.raises(RequestError):
            generate(grouped, prompt, (), config, 1, kept_stage1=bad)
    with pytest.raises(RequestError, match="stage 2"):
        generate(grouped, prompt, (), config, 1, kept_stage1=[[1, 2]], kept_stage2=[3])
    with pytest.raises(RequestError, match="nothing is pruned inside"):
        generate(grouped, prompt, (), None, 1, kept_stage2=[3])
    with pytest.raises(RequestError, match="new configuration"):
        generate(grouped, prompt, (), PruningConfig(576, 4, 2, 96, 32), 1)


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


def test_prompts_that_do_not_fit_their_images(grouped: ReferenceModel) -> None:
    image = random_image(0)
    with pytest.raises(PromptError, match="2 images"):
        grouped.prepare("x", [image, image])
    with pytest.raises(PromptError, match="no image was given"):
        grouped.prepare("what is <image>?")
    with pytest.raises(PromptError, match="one place"):
        grouped.prepare("what is <image>?", [image])
    with pytest.raises(PromptError, match="one place"):
        grouped.prepare("what is it?", [image], chat=False)
    with pytest.raises(PromptError, match="2 <image> tokens"):
        grouped.prepare("<image><image>what is it?", [image], chat=False)
    with pytest.raises(PromptError, match="text after"):
        grouped.prepare("what is it? <image>", [image], chat=False)
    with pytest.raises(PromptError, match="already holds"):
        generate(grouped, grouped.prepare("what?", [image]), [image])


@pytest.mark.parametrize("layout", ["4.x", "memory-4.52", "memory-5.x", "flat"])
def test_every_layout_opens_to_the_same_model(grouped: ReferenceModel, tmp_path: Path, layout: Layout) -> None:
    spec = dataclasses.replace(SPECS["grouped"], layout=layout, max_shard_size="100KB")
    folder = write_random_llava(tmp_path, spec)
    assert len(list(folder.glob("*.safetensors"))) > 2
    other = ReferenceModel.open(folder)
    for (name, left), (_, right) in zip(grouped.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert torch.equal(left, right), name
    assert other.prepare("What?", [random_image(0)]).after == grouped.prepare("What?", [random_image(0)]).after


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
