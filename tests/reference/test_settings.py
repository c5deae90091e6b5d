"""The reference under a checkpoint's generation settings: transformers' own generate on the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import GenerationConfig

from sts_export.reference import ReferenceModel, generate
from sts_export.testing.checkpoints import random_image, random_prompt
from tests.reference.helpers import CHECKPOINTS, own_inputs, user

STEPS = 20


def answers(model: ReferenceModel, inputs: dict[str, Any], question: str, image: Any) -> tuple[list[int], list[int]]:
    """transformers' and the reference's."""
    out = model.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    ours = generate(model, question, [image], max_new_tokens=STEPS)
    assert ours.choices == ours.token_ids
    return out[0, inputs["input_ids"].shape[1] :].tolist(), ours.token_ids


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_settings_are_those_of_transformers_generate(
    models: Callable[[str], ReferenceModel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image, question = models(name), random_image(3), random_prompt(3)
    inputs = own_inputs(model, [user(question)], [image])
    length, ends = inputs["input_ids"].shape[1], sorted(model.eos_tokens)
    plain, _ = answers(model, inputs, question, image)
    kept = {"eos_token_id": ends, "pad_token_id": 0}
    settings: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.6, "no_repeat_ngram_size": 2},
        {"bad_words_ids": [plain[2:4], [plain[5]], [ends[0]]], "sequence_bias": [[[plain[6]], 4.0], [plain[7:9], -9.0]]},
        {"suppress_tokens": [plain[3]], "begin_suppress_tokens": [plain[0]]},
        {"eos_token_id": [*ends, plain[1]], "min_new_tokens": 4},
        {"eos_token_id": [*ends, plain[1]], "min_length": length + 4},
        {"eos_token_id": [*ends, plain[1]], "min_length": length + 4, "min_new_tokens": 1},
    ]
    seen = []
    for one in settings:
        config = GenerationConfig(**{**kept, **one})
        monkeypatch.setattr(model.model, "generation_config", config)
        ending = config.eos_token_id
        monkeypatch.setattr(model, "eos_tokens", frozenset(ending))
        expected, ours = answers(model, inputs, question, image)
        assert ours == expected, one
        seen.append(expected != plain)
    assert sum(seen) >= 5


def test_forced_tokens_have_choices_of_their_own(models: Callable[[str], ReferenceModel]) -> None:
    """Each is the greedy one after the forced tokens before it."""
    model, image, question = models("llava"), random_image(3), random_prompt(3)
    free = generate(model, question, [image], max_new_tokens=6, ignore_eos=True)
    forced = [*free.token_ids[:3], (free.token_ids[3] + 1) % 300, 7, 8]
    result = generate(model, question, [image], max_new_tokens=6, forced_tokens=forced)
    assert result.token_ids == forced
    assert result.choices[:4] == free.token_ids[:4]
    assert result.choices == result.logits.argmax(-1).tolist()
