"""Generation with every stage: what the stages are given, and that the LLM sees what they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sts_export.errors import RequestError
from sts_export.reference import NEWLINE, Choices, Crop, Kept, Prefill, ReferenceModel, find_stage1, generate
from sts_export.reference import decoder as decoder_module
from sts_export.reference import selecting as selecting_module
from sts_export.testing.checkpoints import random_image
from tests.reference.helpers import masked_logits, own_inputs, transformers_generate, user
from tests.reference.stages import CLS_STAGES, INSIDE, STAGES, pair

Models = Callable[[str], ReferenceModel]
CHAT: list[dict[str, Any]] = [
    user("What is it?"),
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    user("And on the table?"),
]
IMAGES = [random_image(1, (200, 150)), random_image(2, (300, 40))]
FAMILIES = ["llava", "vicuna", "qwen"]
EVERY = {**STAGES, **CLS_STAGES}


def selector_of(model: ReferenceModel, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a selector as wide as the model's features."""
    width = model.vision(model.prepare("x", [IMAGES[0]]).images[0]).features.shape[1]
    torch.manual_seed(seed)
    shapes = {"linear_1.weight": (width // 2, width), "linear_1.bias": (width // 2,)}
    shapes |= {"linear_2.weight": (2, width // 2), "linear_2.bias": (2,)}
    return {f"selector.{name}": torch.randn(shape) for name, shape in shapes.items()}


def fits(model: ReferenceModel, name: str) -> bool:
    return name in STAGES or "cls_attention" in model.gives


@pytest.mark.parametrize("stage1", EVERY)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_before_the_llm(models: Models, family: str, stage1: str) -> None:
    """Counts, and that what stage 1 left is all that the rest needs to know."""
    model, stage = models(family), EVERY[stage1]
    prompt = model.prepare(CHAT, IMAGES)
    config = pair(model, stage, INSIDE["last-token"], 13, 5)
    choices: dict[str, Any] = {"selector": selector_of(model), "seed": 3, "ignore_eos": True}
    if not fits(model, stage1):
        with pytest.raises(RequestError, match="does not give cls_attention"):
            generate(model, prompt, (), config, 1, **choices)
        return
    result = generate(model, prompt, (), config, 4, **choices)
    newlines = sum(image.layout.count(NEWLINE) for image in prompt.images)
    text = len(prompt.ids) - sum(len(image.layout) for image in prompt.images)
    assert (result.prompt_tokens, result.upper_prompt_tokens) == (text + newlines + 26, text + newlines + 10)
    assert sum(map(len, result.kept_stage1)) + result.cls_tokens == 26
    if stage1 == "visionzip":  # one a crop
        assert result.cls_tokens == {"llava": 2, "vicuna": 9}[family]
    else:
        assert result.cls_tokens == 0 and len(result.kept_stage2) == 10
    first = result.num_visual_tokens[0]
    left = {first * image + token for image, kept in enumerate(result.kept_stage1) for token in kept}
    assert set(result.kept_stage2) <= left and result.kept_stage2 == sorted(result.kept_stage2)
    if stage.merges:
        assert result.merged_into is not None
        for kept, into in zip(result.kept_stage1, result.merged_into, strict=True):
            assert all(token == -1 for index, token in enumerate(into) if index in kept)
            assert {token for token in into if token >= 0} <= set(kept)
            assert sum(token >= 0 for token in into) == len(into) - len(kept)
    else:
        assert result.merged_into is None
    given = generate(
        model,
        prompt,
        (),
        config,
        4,
        ignore_eos=True,
        use_cache=False,
        selections=result.trace.selections,
        kept_stage2=result.kept_stage2,
    )
    assert given.token_ids == result.token_ids and given.kept_stage2 == result.kept_stage2
    assert given.merged_into == result.merged_into and given.cls_tokens == result.cls_tokens
    torch.testing.assert_close(given.logits, result.logits, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("stage2", ["text-visual", "text-visual, next", "dart", "random", "keep-all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_inside_the_llm(models: Models, family: str, stage2: str) -> None:
    """Dropping is masking in transformers' own decoder."""
    model = models(family)
    prompt = model.prepare(CHAT, IMAGES)
    keep2 = 15 if stage2 == "keep-all" else 7
    config = pair(model, STAGES["residual-qr"], INSIDE[stage2], 15, keep2, "keep")
    result = generate(model, prompt, (), config, 4, ignore_eos=True, seed=1)
    assert len(result.kept_stage2) == 2 * keep2
    expected = masked_logits(model, own_inputs(model, CHAT, IMAGES), prompt, config, result)
    torch.testing.assert_close(result.logits, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("stage1", EVERY)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_is_the_unpruned_model(models: Models, family: str, stage1: str) -> None:
    model = models(family)
    if not fits(model, stage1):
        return
    image, everything = random_image(4, (84, 84)), model.num_visual_tokens
    tokens, _ = transformers_generate(model, 3, **own_inputs(model, [user("What?")], [image]))
    for stage2 in ("dart", "text-visual"):
        config = pair(model, EVERY[stage1], INSIDE[stage2], everything, everything)
        result = generate(model, "What?", [image], config, 3, ignore_eos=True)
        assert result.token_ids == tokens and result.cls_tokens == 0 and result.merged_into is None


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_stage_before_the_llm_is_given(models: Models, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, weights = models(family), list[Crop](), {"selector.x": torch.ones(1)}
    prompt = model.prepare(CHAT, IMAGES)

    def spy(crop: Crop, keep: int, /) -> Choices:
        seen.append(crop)
        return Choices(torch.arange(keep))

    monkeypatch.setattr(selecting_module, "find_stage1", lambda name: spy)
    generate(model, prompt, (), pair(model, STAGES["learned"], INSIDE["keep-all"], 9, 9), 1, seed=77, selector=weights)
    words = torch.tensor([token for token in prompt.ids if token != model.image_token])
    assert 10 < len(words) < len(prompt.ids)
    for image, start in zip(prompt.images, prompt.starts, strict=True):
        assert set(prompt.ids[start : start + len(image.layout)]) == {model.image_token}
    expected = model.model.get_input_embeddings()(words)
    each = iter(seen)
    for image in prompt.images:
        features = model.vision(image).features
        for number in sorted(set(image.crops.tolist())):
            crop, own = next(each), (image.crops == number).nonzero()[:, 0]
            assert (crop.number, crop.alone, crop.seed) == (number, family != "vicuna", 77)
            assert torch.equal(crop.text, expected) and crop.weights is weights and crop.cls is None
            assert torch.equal(crop.features, features[own]) and torch.equal(crop.picture, features)
            assert torch.equal(crop.places, image.places[own]) and crop.grid == image.grid
            assert int(crop.places[:, 0].max()) < crop.grid[0] and int(crop.places[:, 1].max()) < crop.grid[1]
            torch.testing.assert_close(crop.project(crop.features), model.project(features[own]))
    assert next(each, None) is None and (len(seen) > 2) == (family == "vicuna")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_stage_inside_the_llm_is_given(models: Models, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, entering = models(family), list[Prefill](), list[Tensor]()
    prompt = model.prepare(CHAT, IMAGES)

    def spy(prefill: Prefill, keep: int, /) -> Kept:
        final = prefill.final()  # while the cache is what it is
        seen.append(prefill._replace(final=lambda: final))
        return Kept(torch.arange(int(prefill.visual.sum())))

    monkeypatch.setattr(decoder_module, "find_stage2", lambda name: spy)
    config = pair(model, STAGES["residual-qr"], INSIDE["random"], 9, 9)
    hook = model.decoder.layers[2].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0][0]))
    result = generate(model, prompt, (), config, 1, seed=-5)
    hook.remove()
    (prefill,) = seen
    kinds = []
    for row, token in enumerate(prompt.ids):
        own = [number for number, start in enumerate(prompt.starts) if 0 <= row - start < len(prompt.images[number].layout)]
        if not own:
            assert token != model.image_token
            kinds.append("text")
            continue
        what = prompt.images[own[0]].layout[row - prompt.starts[own[0]]]
        if what == NEWLINE:
            kinds.append("newline")
        elif what in result.kept_stage1[own[0]]:
            kinds.append("visual")
    assert prefill.text.tolist() == [kind == "text" for kind in kinds]
    assert prefill.visual.tolist() == [kind == "visual" for kind in kinds]
    assert ("newline" in kinds) == (family == "vicuna") and prefill.seed == -5
    (hidden,) = entering
    torch.testing.assert_close(prefill.final(), model.decoder.norm(hidden))


@pytest.mark.parametrize("positions", ["reindex", "original"])
def test_cls_comes_first_and_contextual_tokens_last(models: Models, positions: Any) -> None:
    """VisionZip on LLaVA: one run of transformers' decoder on rows put together by hand."""
    model = models("llava")
    prompt = model.prepare(CHAT, IMAGES)
    config = pair(model, CLS_STAGES["visionzip"], INSIDE["keep-all"], 11, 11, positions)
    result = generate(model, prompt, (), config, 1)
    rows, places = list[Tensor](), list[int]()
    words = model.embed(prompt.ids)
    done = 0
    for number, (image, start) in enumerate(zip(prompt.images, prompt.starts, strict=True)):
        seen = model.vision(image, model.gives)
        assert seen.cls is not None
        crop = Crop(seen.features, seen.tower, seen.features, image.places, image.grid, cls=seen.cls[0])
        choices: Any = find_stage1("visionzip")(crop, 11, score="cls")
        dominant, contextual = sorted(choices.order[1:9].tolist()), sorted(choices.order[9:].tolist())
        assert contextual != sorted(contextual + dominant)[-2:]  # else their order would not show
        merged = torch.cat([seen.cls, choices.features[dominant + contextual]])
        rows += [words[done:start], model.project(merged)]
        places += [*range(done, start), start, *(start + token for token in dominant + contextual)]
        done = start + len(image.layout)
        assert result.kept_stage1[number] == sorted(dominant + contextual)
    rows.append(words[done:])
    places += range(done, len(prompt.ids))
    embeds = torch.cat(rows)[None]
    ids = torch.tensor([places]) if positions == "original" else torch.arange(embeds.shape[1])[None]
    mask = torch.ones(1, embeds.shape[1], dtype=torch.int64)
    out = model.decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(result.logits, model.model.lm_head(out[:, -1]).float(), atol=3e-4, rtol=1e-4)
    assert result.cls_tokens == 2 and result.trace.tokens.count(-1) == 2


def test_with_tiles_only_cls_leaves_the_reading_order(models: Models) -> None:
    """Crops that keep all of theirs have no CLS and merge nothing."""
    model = models("vicuna")
    prompt = model.prepare("What?", [IMAGES[1]])  # crops of 36, 12, 12 and 12 tokens
    result = generate(model, prompt, (), pair(model, CLS_STAGES["visionzip"], INSIDE["keep-all"], 50, 50), 1)
    assert result.cls_tokens == 1 and len(result.kept_stage1[0]) == 49
    assert result.trace.tokens == [-1, *result.kept_stage1[0]]
    crops = prompt.images[0].crops
    assert set((crops != 0).nonzero()[:, 0].tolist()) <= set(result.kept_stage1[0])
    assert result.merged_into is not None
    assert {int(crops[token]) for token, into in enumerate(result.merged_into[0]) if into >= 0} == {0}


def test_seed_and_weights_decide(models: Models) -> None:
    model = models("qwen")
    prompt = model.prepare("What?", [IMAGES[0]])

    def kept(stage1: str, stage2: str, **choices: Any) -> tuple[list[int], list[int]]:
        result = generate(model, prompt, (), pair(model, STAGES[stage1], INSIDE[stage2], 12, 6), 1, **choices)
        return result.kept_stage1[0], result.kept_stage2

    assert kept("random", "random") == kept("random", "random", seed=0) != kept("random", "random", seed=1)
    assert kept("residual-qr", "random")[1] != kept("residual-qr", "random", seed=1)[1]
    one, other = (kept("learned", "dart", selector=selector_of(model, seed)) for seed in (0, 1))
    assert one[0] != other[0]
    with pytest.raises(RequestError, match="selector"):
        kept("learned", "dart")


def test_impossible_choices_are_refused(models: Models) -> None:
    model = models("llava")
    prompt = model.prepare("What?", [IMAGES[0]])
    config = pair(model, CLS_STAGES["visionzip"], INSIDE["last-token"], 9, 3)
    made = generate(model, prompt, (), config, 1).trace.selections
    with pytest.raises(RequestError, match="give selections"):
        generate(model, prompt, (), config, 1, kept_stage1=[list(range(9))])
    with pytest.raises(RequestError, match="2 kept sets"):
        generate(model, prompt, (), config, 1, selections=[*made, *made])
