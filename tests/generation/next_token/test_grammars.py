"""Answers that follow a grammar, of models with random weights: always valid, whoever else is answered beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export import Pipeline
from sts_export.errors import RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.logits_processors import LogitsProcessor
from sts_export.generation.sampling import Sampler
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.grammars.grammar import Grammar
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.request import Request
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.checkpoints import RandomLlava, RandomQwen25VL, write_random_llava, write_random_qwen2_5_vl
from tests.support.mixed_requests import REQUESTS, without_times

torch.set_num_threads(1)
NEW = 400
SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["yes", "no", "perhaps"]},
    {"type": "integer", "minimum": -3, "maximum": 120},
    {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 12}},
        "required": ["animal", "count"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 8},
            "seen": {"type": "boolean"},
            "colours": {"type": "array", "items": {"enum": ["réd", "blue"]}, "maxItems": 2},
        },
        "required": ["seen"],
        "additionalProperties": False,
    },
]
MIXED: list[tuple[Grammar | None, SamplingConfig | None]] = [
    (Grammar.json_schema(SCHEMAS[2]), None),
    (None, None),
    (Grammar.json_schema(SCHEMAS[3]), SamplingConfig(temperature=1.4, seed=5)),
    (Grammar.regex("[a-c]{30}"), SamplingConfig(temperature=2.0, top_k=50, top_p=0.9, seed=6)),
    (None, SamplingConfig(temperature=1.0, seed=7)),
    (Grammar.json_schema(SCHEMAS[2]), SamplingConfig(temperature=0.8, min_p=0.05, seed=8)),
    (Grammar.json_object(), None),
    (Grammar.regex("yes|no"), None),
]


def bundle(folder: Path, name: str, ends: Any = None) -> Path:
    if name == "qwen":
        checkpoint = write_random_qwen2_5_vl(folder / "checkpoint", RandomQwen25VL(layers=2))
    else:
        checkpoint = write_random_llava(folder / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    if ends is not None:
        file = checkpoint / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ends}))
    budget: dict[str, Any] = {"budget": "30%", "max_prompt_tokens": 150, "max_new_tokens": NEW, "max_visual_tokens": 250}
    return export(ExportRequest(str(checkpoint), folder / "bundle", weights="link", **budget)).folder


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    return {name: Pipeline(bundle(tmp_path_factory.mktemp(name), name), threads=1) for name in ("llava", "qwen")}


@pytest.mark.parametrize("name", ["llava", "qwen"])
@given(
    schema=st.sampled_from(SCHEMAS),
    temperature=st.sampled_from([0.0, 0.7, 1.5, 4.0]),
    top_k=st.sampled_from([0, 1, 30]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, derandomize=True, max_examples=12)
def test_answers_are_valid(
    pipelines: dict[str, Pipeline], name: str, schema: dict[str, Any], temperature: float, top_k: int, seed: int
) -> None:
    sampling = SamplingConfig(temperature, top_k, seed=seed)
    result = pipelines[name].generate("What is it?", grammar=Grammar.json_schema(schema), sampling=sampling)
    assert result.finish_reason == "stop"
    jsonschema.validate(json.loads(result.text), schema)


def requests(vlm: Pipeline) -> list[Request]:
    """Free ones and others, greedy and drawn, with pictures and without."""
    made = []
    for (prompt, images), (grammar, sampling) in zip(REQUESTS, MIXED, strict=True):
        chosen: dict[str, Any] = {"grammar": grammar, "sampling": sampling, "max_new_tokens": 60}
        made.append(vlm.prepare(prompt, images, **chosen))
    return made


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_an_answer_is_the_same_in_any_company(pipelines: dict[str, Pipeline], name: str) -> None:
    vlm = pipelines[name]
    asked = requests(vlm)
    with Scheduler(vlm, slots=1) as scheduler:
        alone = [scheduler.submit(request).result for request in asked]
    for slots in (3, 8):
        with Scheduler(vlm, slots=slots) as scheduler:
            answers = [scheduler.submit(request) for request in asked]
            for answer, expected in zip(answers, alone, strict=True):
                assert "".join(answer) == expected.text and without_times(answer.result) == without_times(expected)
    assert alone[7].text in ("yes", "no") and len(alone[3].text) == 30


def test_the_limit_of_tokens_cuts(pipelines: dict[str, Pipeline]) -> None:
    """As with OpenAI; where the last token completes the answer it has not been cut."""
    ask = pipelines["llava"]
    whole = ask.generate("What?", grammar=Grammar.json_schema(SCHEMAS[2]))
    needed = len(whole.token_ids)
    cut = ask.generate("What?", grammar=Grammar.json_schema(SCHEMAS[2]), max_new_tokens=needed - 1)
    same = ask.generate("What?", grammar=Grammar.json_schema(SCHEMAS[2]), max_new_tokens=needed)
    assert (cut.finish_reason, same.finish_reason) == ("length", "stop")
    assert whole.text.startswith(cut.text) and same.text == whole.text
    with pytest.raises(ValueError):
        json.loads(cut.text)


@pytest.mark.parametrize("ends", [[], 10**6, [2, 300, 10**6]])
def test_no_end_token_and_several(tmp_path: Path, ends: Any) -> None:
    """Answers end where the grammar does; where they may go on, without an end token only the limit of tokens is left."""
    with Pipeline(bundle(tmp_path, "llava", ends), threads=1) as vlm:
        assert vlm.generate("What?", grammar=Grammar.regex("yes|no")).finish_reason == "stop"
        for seed in range(3):
            sampling = SamplingConfig(temperature=2.0, seed=seed)
            result = vlm.generate("What?", grammar=Grammar.regex("[a-c]+"), sampling=sampling, max_new_tokens=40)
            text = result.text.encode()
            assert text and set(text) <= set(b"abc")
            ended = result.token_ids[-1] in vlm.tokenizer.eos_token_ids
            assert result.finish_reason == ("stop" if ended else "length") and (ended or len(result.token_ids) == 40)
            if isinstance(ends, list) and ends:
                chosen = LogitsConfig(logit_bias={300: 50.0})
                early = vlm.generate("What?", grammar=Grammar.regex("[a-c]{2,}"), sampling=sampling, logits=chosen)
                assert early.token_ids[-1] == 300 and len(early.text) >= 2


def test_it_comes_after_penalties_and_before_filters(pipelines: dict[str, Pipeline]) -> None:
    vlm = pipelines["llava"]
    grammar = Grammar.regex("yes|no")
    wanted = {text: vlm.tokenizer.backend.token_to_id(text) for text in "yn!"}
    for best in "yn":
        chosen = LogitsConfig(logit_bias={wanted[best]: 60.0, wanted["!"]: 1000.0})
        for sampling in (None, SamplingConfig(temperature=1.0, top_k=1, seed=1), SamplingConfig(0.5, 0, 0.01, 1)):
            assert vlm.generate("Is it?", grammar=grammar, logits=chosen, sampling=sampling).text[0] == best


def test_the_samplers_order_on_numbers(pipelines: dict[str, Pipeline]) -> None:
    """Top-k counts allowed tokens alone: with k = 2 both of two allowed ones are drawn, though others are likelier."""
    vlm = pipelines["llava"]
    request = vlm.prepare("What?", grammar=Grammar.regex("y|n"))
    assert request.grammar is not None
    vocabulary = vlm.manifest.model.decoder.vocab_size
    ids = [vlm.tokenizer.backend.token_to_id(text) for text in "yn"]
    logits = np.full(vocabulary, 5.0, np.float32)
    logits[ids] = 1.0
    drawn = set()
    for seed in range(40):
        processor = LogitsProcessor(LogitsConfig(presence_penalty=1.0), np.zeros(1, np.int64), vocabulary)
        sampler = Sampler(SamplingConfig(1.0, 2, seed=seed), processor, request.grammar.begun())
        assert not sampler.is_complete
        drawn.add(sampler.sample(logits))
        assert sampler.is_complete
    assert drawn == set(ids) and (logits[ids] == 1.0).all()


def test_settings_that_leave_no_allowed_token(pipelines: dict[str, Pipeline]) -> None:
    """The request fails alone, in one line."""
    vlm = pipelines["llava"]
    y = vlm.tokenizer.backend.token_to_id("y")
    with Scheduler(vlm, slots=2) as scheduler:
        wrong = scheduler.submit(vlm.prepare("Is it?", grammar=Grammar.regex("y+x"), logits=LogitsConfig(suppress_tokens=[y])))
        right = scheduler.submit(vlm.prepare("Is it?", grammar=Grammar.regex("yes|no")))
        with pytest.raises(RequestError, match=r"^the generation settings exclude every token that the grammar [^\n]*$"):
            _ = wrong.result
        assert right.result.text in ("yes", "no")


def test_stop_strings_and_logprobs_beside_it(pipelines: dict[str, Pipeline]) -> None:
    vlm = pipelines["qwen"]
    result = vlm.generate("What?", grammar=Grammar.json_schema(SCHEMAS[2]), stop=["animal"], logprobs=3)
    assert result.text.split() in (['{"'], ["{", '"'])
    assert result.finish_reason == "stop" and result.logprobs is not None
    # Of the model's own probabilities: the likeliest tokens need not be those that the grammar allows.
    assert any(one.token_id not in dict(one.top) for one in result.logprobs)


def test_what_is_refused_before_anything_runs(pipelines: dict[str, Pipeline]) -> None:
    vlm = pipelines["llava"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"grammar": Grammar.json_schema({"type": "nothing"})}, "Invalid type: nothing"),
        ({"grammar": {"type": "object"}}, "grammar is a Grammar, not dict"),
        ({"grammar": Grammar.json_object(), "ignore_eos": True}, "leave one of them out"),
    ]
    for given_settings, message in wrong:
        with pytest.raises(RequestError, match=message):
            vlm.stream("What?", **given_settings)
