"""Exported bundles on ONNX Runtime against the PyTorch reference, image by image: the evidence that the export is right.

More than a hundred image/prompt pairs on random checkpoints of several shapes and on the demo model: the kept sets of both
stages and 64 greedy tokens must be equal, and the logits of every step within 1e-3.  Nothing is excused as a near-tie.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

from sts_export import Pipeline
from sts_export.demo import MODEL_DIR
from sts_export.demo.held_out import held_out
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.result import GenerationResult
from sts_export.reference import ReferenceModel, ReferenceResult, generate
from sts_export.testing.checkpoints import RandomLlava, random_image, random_prompt, write_random_llava
from tests.support.parity import TOLERANCE, relative_error

torch.set_num_threads(1)
TOKENS = 64
PROMPT_ROOM, NEW_ROOM = 90, 66

SPECS: dict[str, RandomLlava] = {
    "grouped": RandomLlava(),
    "deep": RandomLlava(seed=1, layers=6, kv_heads=4, attention_bias=True, mlp_bias=True, head_dim=12, layout="4.x"),
    "tied": RandomLlava(seed=2, layers=5, kv_heads=1, tied_embeddings=True, rope_theta=500.0, vision_feature_layer=-1),
    "large": RandomLlava(seed=3, image_size=336, layers=6, kv_heads=4),
    "large_tied": RandomLlava(seed=4, image_size=336, layers=3, tied_embeddings=True, attention_bias=True),
    "bf16": RandomLlava(seed=5, dtype="bfloat16", kv_heads=4, layers=3),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A checkpoint and how it is pruned; ``choices`` are anchor, positions and score_layer."""

    checkpoint: str
    keep: tuple[int, int]
    layer: int
    choices: tuple[str, str, str] = ("mean", "reindex", "own")
    method: str = "sts"
    dtype: str = "float32"
    weights: str = "copy"

    def __str__(self) -> str:
        return f"{self.checkpoint}-L{self.layer}-{self.keep[0]},{self.keep[1]}-{'-'.join(self.choices)}"


# setting -> number of pairs
PAIRS: dict[Setting, int] = {
    Setting("grouped", (12, 4), 2): 6,
    Setting("grouped", (12, 4), 2, ("first", "keep", "own")): 5,
    Setting("grouped", (20, 7), 1, ("saliency", "reindex", "next")): 5,
    Setting("grouped", (9, 9), 3, ("mean", "keep", "next"), method="sts-s"): 4,
    Setting("deep", (16, 5), 1, ("saliency", "keep", "own")): 5,
    Setting("deep", (16, 5), 5, ("first", "reindex", "next")): 5,
    Setting("deep", (1, 1), 3): 3,
    Setting("tied", (10, 3), 4, ("first", "reindex", "own")): 5,
    Setting("tied", (36, 6), 2, ("mean", "keep", "next")): 5,  # stage 2 alone
    Setting("large", (96, 32), 3): 6,
    Setting("large", (64, 16), 3, ("first", "keep", "next")): 5,
    Setting("large", (150, 3), 5, ("saliency", "reindex", "own")): 4,
    Setting("large_tied", (80, 26), 2, ("mean", "reindex", "next")): 5,
    Setting("large_tied", (48, 40), 1, ("saliency", "keep", "own")): 5,
    Setting("demo", (96, 32), 4): 20,
    Setting("demo", (48, 16), 4, ("saliency", "keep", "next")): 10,
    Setting("demo", (24, 8), 2, ("first", "reindex", "own")): 6,
}


class Workshop:
    """Writes checkpoints, exports bundles and opens them, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[str, ReferenceModel] = {}
        self._pipelines: dict[Setting, Pipeline] = {}

    def checkpoint(self, name: str) -> Path:
        if name == "demo":
            return MODEL_DIR
        folder = self.folder / f"checkpoint-{name}"
        return folder if folder.is_dir() else write_random_llava(folder, SPECS[name])

    def reference(self, name: str) -> ReferenceModel:
        if name not in self._references:
            self._references[name] = ReferenceModel.open(self.checkpoint(name))
        return self._references[name]

    def pipeline(self, setting: Setting) -> Pipeline:
        if setting not in self._pipelines:
            output = self.folder / f"bundle-{len(self._pipelines)}"
            export(
                ExportRequest(
                    str(self.checkpoint(setting.checkpoint)),
                    output=output,
                    keep=setting.keep,
                    method=setting.method,
                    prune_layer=setting.layer,
                    choices=dict(zip(("anchor", "positions", "score_layer"), setting.choices, strict=True)),
                    dtype=setting.dtype,
                    weights=setting.weights,  # type: ignore[arg-type]
                    max_prompt_tokens=PROMPT_ROOM,
                    max_new_tokens=NEW_ROOM,
                )
            )
            self._pipelines[setting] = Pipeline(output, threads=1)
        return self._pipelines[setting]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("parity"))


def pair(name: str, index: int) -> tuple[Image.Image, str]:
    """Picture and prompt number ``index`` for a checkpoint; pictures of several shapes."""
    if name == "demo":
        images, questions = held_out(index)
        alone = [question.text for question in questions if question.pictures == 1]
        return images[0], alone[index % len(alone)]
    size = ((120, 100), (84, 84), (60, 200), (400, 337))[index % 4]
    return random_image(1000 + 10 * SPECS[name].seed + index, size), random_prompt(index)


def both(
    shop: Workshop, setting: Setting, prompt: str, images: Sequence[Image.Image], **settings: Any
) -> tuple[GenerationResult, ReferenceResult]:
    """The bundle's and the reference's answer of ``TOKENS`` tokens."""
    vlm = shop.pipeline(setting)
    ours = vlm.generate(prompt, images, max_new_tokens=TOKENS, ignore_eos=True)
    model = shop.reference(setting.checkpoint)
    return ours, generate(model, prompt, images, vlm.manifest.pruning, TOKENS, ignore_eos=True, **settings)


def test_there_are_a_hundred_pairs_over_every_choice() -> None:
    assert sum(PAIRS.values()) >= 100
    choices = [setting.choices for setting in PAIRS]
    assert {choice[0] for choice in choices} == {"mean", "first", "saliency"}
    assert {choice[1:] for choice in choices} == {(a, b) for a in ("reindex", "keep") for b in ("own", "next")}
    depths = {name: spec.layers for name, spec in SPECS.items()}
    assert any(setting.layer == 1 for setting in PAIRS)
    assert any(setting.layer == depths.get(setting.checkpoint, 0) - 1 for setting in PAIRS)


@pytest.mark.parametrize(
    ("setting", "index"),
    [(setting, index) for setting, count in PAIRS.items() for index in range(count)],
    ids=[f"{setting}-{index}" for setting, count in PAIRS.items() for index in range(count)],
)
def test_pair(shop: Workshop, setting: Setting, index: int) -> None:
    image, prompt = pair(setting.checkpoint, index)
    ours, theirs = both(shop, setting, prompt, [image])
    margins = theirs.trace.margins
    clearness = f"least margin of stage 1: {float(margins.min()):.1e}" if len(margins) else "nothing chosen"
    assert ours.kept_stage1 == theirs.kept_stage1, clearness
    assert ours.kept_stage2 == theirs.kept_stage2, clearness
    assert ours.token_ids == theirs.token_ids
    assert len(ours.token_ids) == TOKENS
    assert (len(ours.kept_stage1[0]), len(ours.kept_stage2)) == setting.keep
    assert ours.prompt_tokens == theirs.prompt_tokens
    logits = shop.pipeline(setting).score(prompt, image, theirs.token_ids)
    assert relative_error(logits, theirs.logits) < TOLERANCE


def test_pairs_can_tell_models_apart(shop: Workshop) -> None:
    """The checks above have something to see: answers and kept sets vary with the picture and with every choice."""
    one, other = Setting("grouped", (12, 4), 2), Setting("grouped", (12, 4), 2, ("first", "keep", "own"))
    answers = [shop.pipeline(one).generate(random_prompt(1), random_image(i), max_new_tokens=16) for i in range(3)]
    assert len({tuple(answer.token_ids) for answer in answers}) == 3
    assert len({tuple(answer.kept_stage1[0]) for answer in answers}) == 3
    assert len({tuple(answer.kept_stage2) for answer in answers}) == 3
    changed = shop.pipeline(other).generate(random_prompt(1), random_image(0), max_new_tokens=16)
    assert changed.kept_stage1 != answers[0].kept_stage1
    # Positions alone change the logits.
    kept = [Setting("grouped", (12, 4), 2, ("mean", positions, "own")) for positions in ("reindex", "keep")]
    first, second = (shop.pipeline(s).score(random_prompt(1), random_image(0), [5, 6, 7]) for s in kept)
    assert np.abs(first - second).max() > 1e-2 * np.abs(first).max()


# Nothing pruned: transformers itself


@pytest.mark.parametrize("name", ["grouped", "deep", "tied", "large", "large_tied", "demo"])
@pytest.mark.parametrize("positions", ["reindex", "keep"])
def test_unpruned_is_transformers_generate(shop: Workshop, name: str, positions: str) -> None:
    """transformers' own model, processor and generate, with no code of this project between."""
    folder = shop.checkpoint(name)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    images = CLIPImageProcessorPil.from_pretrained(folder)
    processor = LlavaProcessor.from_pretrained(folder, image_processor=images)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    every = shop.reference(name).num_visual_tokens
    vlm = shop.pipeline(Setting(name, (every, every), 2, ("mean", positions, "own")))
    for index in range(2):
        image, prompt = pair(name, 10 + index)
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = processor(images=image, text=text, return_tensors="pt")
        out = model.generate(
            **inputs,
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=10**6,
            return_dict_in_generate=True,
            output_logits=True,
        )
        expected = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ours = vlm.generate(prompt, image, max_new_tokens=TOKENS, ignore_eos=True)
        assert ours.token_ids == expected
        assert ours.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert ours.kept_stage1 == [list(range(every))] and ours.kept_stage2 == list(range(every))
        assert relative_error(vlm.score(prompt, image, expected), torch.cat(out.logits)) < TOLERANCE


# The same bundle, asked in other ways


@pytest.mark.parametrize(
    "setting",
    [
        Setting("grouped", (12, 4), 2),
        Setting("deep", (16, 5), 1, ("saliency", "keep", "own")),
        Setting("tied", (10, 3), 4, ("first", "reindex", "own")),
        Setting("large", (64, 16), 3, ("first", "keep", "next")),
    ],
    ids=str,
)
def test_cached_decode_is_an_uncached_run(shop: Workshop, setting: Setting) -> None:
    """The reference without any cache, under the kept sets of the bundle: every step runs the whole text again."""
    image, prompt = pair(setting.checkpoint, 20)
    vlm = shop.pipeline(setting)
    ours = vlm.generate(prompt, image, max_new_tokens=TOKENS, ignore_eos=True)
    theirs = generate(
        shop.reference(setting.checkpoint),
        prompt,
        [image],
        vlm.manifest.pruning,
        TOKENS,
        use_cache=False,
        ignore_eos=True,
        kept_stage1=ours.kept_stage1,
        kept_stage2=ours.kept_stage2,
    )
    assert ours.token_ids == theirs.token_ids
    assert relative_error(vlm.score(prompt, image, ours.token_ids), theirs.logits) < TOLERANCE


@pytest.mark.parametrize(
    "setting",
    [
        Setting("grouped", (12, 4), 2),
        Setting("deep", (16, 5), 5, ("first", "reindex", "next")),
        Setting("tied", (36, 6), 2, ("mean", "keep", "next")),
        Setting("demo", (96, 32), 4),
    ],
    ids=str,
)
def test_text_only(shop: Workshop, setting: Setting) -> None:
    for index in range(3):
        ours, theirs = both(shop, setting, pair(setting.checkpoint, index)[1], [])
        assert ours.token_ids == theirs.token_ids
        assert (ours.kept_stage1, ours.kept_stage2) == ([], [])
        assert ours.prompt_tokens == theirs.prompt_tokens
        assert (ours.visual_tokens.total, ours.visual_tokens.stage1, ours.visual_tokens.stage2) == (0, 0, 0)


def test_answers_end_where_the_reference_ends(shop: Workshop, tmp_path: Path) -> None:
    """A checkpoint whose end tokens are two that its answers hold somewhere: both stop there."""
    plain = Setting("grouped", (12, 4), 2)
    pairs = [pair("grouped", index) for index in range(4)]
    answers = [shop.pipeline(plain).generate(prompt, image, max_new_tokens=TOKENS, ignore_eos=True) for image, prompt in pairs]
    ends = [answers[0].token_ids[9], answers[1].token_ids[30]]
    folder = shutil.copytree(shop.checkpoint("grouped"), tmp_path / "checkpoint")
    settings_file = folder / "generation_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "eos_token_id": ends}))
    export(ExportRequest(str(folder), output=tmp_path / "bundle", keep=(12, 4), prune_layer=2))
    vlm, model = Pipeline(tmp_path / "bundle", threads=1), ReferenceModel.open(folder)
    for (image, prompt), unstopped in zip(pairs, answers, strict=True):
        ours = vlm.generate(prompt, image, max_new_tokens=TOKENS)
        theirs = generate(model, prompt, [image], vlm.manifest.pruning, TOKENS)
        assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
        said = [token for token in ours.token_ids if token not in ends]  # the end token is no text, special or not
        assert ours.text == model.processor.tokenizer.decode(said, skip_special_tokens=True)
        assert ours.token_ids == unstopped.token_ids[: len(ours.token_ids)]
        assert (ours.finish_reason == "stop") == (ours.token_ids[-1] in ends)
        assert not set(ours.token_ids[:-1]) & set(ends)
    assert vlm.generate(pairs[0][1], pairs[0][0], max_new_tokens=TOKENS).finish_reason == "stop"


# Other ways to store the weights


def test_float16_bundle_is_close(shop: Workshop) -> None:
    """Kept sets may differ where float16 features do; under the same sets the logits agree to float16's precision."""
    for checkpoint, keep in (("grouped", (12, 4)), ("large_tied", (80, 26))):
        setting = Setting(checkpoint, keep, 2, dtype="float16")
        vlm = shop.pipeline(setting)
        for index in range(3):
            image, prompt = pair(checkpoint, index)
            ours = vlm.generate(prompt, image, max_new_tokens=16, ignore_eos=True)
            theirs = generate(
                shop.reference(checkpoint),
                prompt,
                [image],
                vlm.manifest.pruning,
                16,
                kept_stage1=ours.kept_stage1,
                kept_stage2=ours.kept_stage2,
                forced_tokens=ours.token_ids,
            )
            error = relative_error(vlm.score(prompt, image, ours.token_ids), theirs.logits)
            assert 1e-5 < error < 3e-2  # not the float32 bundle by mistake


def test_bfloat16_checkpoint_as_float32(shop: Workshop) -> None:
    setting = Setting("bf16", (12, 4), 1)
    assert shop.pipeline(setting).manifest.dtype == "float32"
    for index in range(3):
        image, prompt = pair("bf16", index)
        ours, theirs = both(shop, setting, prompt, [image])
        assert (ours.kept_stage1, ours.kept_stage2) == (theirs.kept_stage1, theirs.kept_stage2)
        assert ours.token_ids == theirs.token_ids
        logits = shop.pipeline(setting).score(prompt, image, ours.token_ids)
        assert relative_error(logits, theirs.logits) < TOLERANCE


@pytest.mark.parametrize("name", ["deep", "demo"])
def test_linked_weights_give_identical_results(shop: Workshop, name: str) -> None:
    dtype = "float16" if name == "demo" else "float32"  # what is linked keeps its type
    copied, linked = (Setting(name, (16, 5), 3, dtype=dtype, weights=weights) for weights in ("copy", "link"))
    assert shop.pipeline(linked).manifest.weights.mode == "link"
    assert not list(shop.pipeline(linked).bundle.folder.glob("*.safetensors"))
    image, prompt = pair(name, 0)
    results = [shop.pipeline(s).generate(prompt, image, max_new_tokens=TOKENS, ignore_eos=True) for s in (copied, linked)]
    assert results[0].token_ids == results[1].token_ids
    assert results[0].kept_stage1 == results[1].kept_stage1 and results[0].kept_stage2 == results[1].kept_stage2
    one, other = (shop.pipeline(s).score(prompt, image, results[0].token_ids) for s in (copied, linked))
    np.testing.assert_array_equal(one, other)


# Memory


@pytest.mark.parametrize(
    "setting",
    [
        Setting("grouped", (12, 4), 2),
        Setting("grouped", (12, 4), 2, dtype="float16"),
        Setting("deep", (16, 5), 5, ("first", "reindex", "next")),
        Setting("large", (150, 3), 5, ("saliency", "reindex", "own")),
    ],
    ids=lambda setting: f"{setting}-{setting.dtype}",
)
def test_kv_cache_bytes(shop: Workshop, setting: Setting) -> None:
    """docs/method.md: layers x 2 x kv_heads x head_dim x capacity x bytes, and capacities that shrink at the prune layer."""
    spec, (keep1, keep2) = SPECS[setting.checkpoint], setting.keep
    vlm = shop.pipeline(setting)
    lower, upper = PROMPT_ROOM + keep1 + NEW_ROOM, PROMPT_ROOM + keep2 + NEW_ROOM
    assert vlm.manifest.capacities.rows == (lower, upper)
    row = 2 * spec.kv_heads * spec.head_dim * {"float32": 4, "float16": 2}[setting.dtype]
    image, prompt = pair(setting.checkpoint, 0)
    used = vlm.generate(prompt, image, max_new_tokens=2).kv_cache_bytes
    assert used.lower == setting.layer * row * lower
    assert used.upper == (spec.layers - setting.layer) * row * upper
