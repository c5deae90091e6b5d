"""Logits processors against those that transformers itself chooses for the same settings, token by token."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from sts_export.errors import BackendError, RequestError
from sts_export.generation.logits_processors import LogitsProcessor
from sts_export.generation.sampling import Sampler, filter_scores, softmax
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.public_models import PUBLIC_MODELS

VOCAB = 24
fixed = settings(derandomize=True, deadline=None, database=None, max_examples=60)
tokens = st.integers(0, VOCAB - 1)
sequences = st.lists(tokens, min_size=1, max_size=3)

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.floats(0.3, 3.0),
    "no_repeat_ngram_size": st.integers(1, 4),
    "sequence_bias": st.lists(st.tuples(sequences, st.floats(-20, 20, width=32)).map(list), min_size=1, max_size=6),
    "bad_words_ids": st.lists(sequences, min_size=1, max_size=8),
    "min_length": st.integers(1, 14),
    "min_new_tokens": st.integers(1, 5),
    "suppress_tokens": st.lists(st.integers(-2, VOCAB + 3), min_size=1, max_size=6),
    "begin_suppress_tokens": st.lists(st.integers(0, VOCAB + 3), min_size=1, max_size=6),
}


class Model(GenerationMixin):  # type: ignore[misc]
    """Just enough of a decoder for transformers to choose processors."""

    config = SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace(vocab_size=VOCAB))


def transformers_processors(chosen: dict[str, Any], prompt_tokens: int, ends: list[int]) -> Any:
    """Selection and order of ``generate``."""
    config = GenerationConfig(**chosen)
    config.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    config._eos_token_tensor = torch.tensor(ends) if ends else None
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + prompt_tokens
    return Model()._get_logits_processor(config, input_ids_seq_length=prompt_tokens, device="cpu", model_kwargs={})


def check(chosen: dict[str, Any], prompt: list[int], answer: list[int], ends: list[int], seed: int) -> bool:
    """Scores at every step of an answer; returns whether any changed."""
    ours = LogitsProcessor(LogitsConfig(**chosen), np.array(prompt), VOCAB, ends)
    theirs, changed = transformers_processors(chosen, len(prompt), ends), False
    rng = np.random.default_rng(seed)
    for step in range(len(answer) + 1):
        logits = rng.normal(0, 4, VOCAB).astype(np.float32)
        before = logits.copy()
        scores = ours(logits)
        expected = theirs(torch.tensor([prompt + answer[:step]]), torch.tensor(logits)[None])[0].numpy()
        assert scores.dtype == np.float32 and np.array_equal(logits, before)
        assert np.array_equal(np.isneginf(scores), np.isneginf(expected))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
        changed |= not np.array_equal(scores, logits)
        if step < len(answer):
            ours.append(answer[step])
    return changed


# Few different tokens, so that they repeat; some beyond the logits, as image tokens may be.
prompts = st.lists(st.one_of(st.integers(0, 5), tokens, st.integers(VOCAB, VOCAB + 2)), min_size=2, max_size=12)
answers = st.lists(st.one_of(st.integers(0, 5), tokens), max_size=8)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_setting_is_transformers(name: str) -> None:
    effective = 0

    @given(SETTINGS[name], prompts, answers, st.lists(tokens, max_size=2), st.integers(0, 2**32))
    @fixed
    def run(value: Any, prompt: list[int], answer: list[int], ends: list[int], seed: int) -> None:
        nonlocal effective
        effective += check({name: value}, prompt, answer, ends, seed)

    run()
    assert effective > 5  # the check above has something to see


@given(st.fixed_dictionaries({}, optional=SETTINGS), prompts, answers, st.lists(tokens, max_size=2), st.integers(0, 2**32))
@fixed
def test_all_settings_together_are_transformers(
    chosen: dict[str, Any], prompt: list[int], answer: list[int], ends: list[int], seed: int
) -> None:
    check(chosen, prompt, answer, ends, seed)


@given(prompts, answers, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 2**32))
@fixed
def test_presence_and_frequency_penalties(
    prompt: list[int], answer: list[int], presence: float, frequency: float, seed: int
) -> None:
    """OpenAI: mu[j] - c[j] * frequency - float(c[j] > 0) * presence, c[j] counting what was sampled before, not the prompt."""
    config = LogitsConfig(presence_penalty=presence, frequency_penalty=frequency)
    processor = LogitsProcessor(config, np.array(prompt), VOCAB)
    for token in answer:
        processor.append(token)
    logits = np.random.default_rng(seed).normal(0, 3, VOCAB)
    counts = Counter(answer)
    expected = [mu - counts[j] * frequency - float(counts[j] > 0) * presence for j, mu in enumerate(logits.tolist())]
    np.testing.assert_allclose(processor(logits), expected, rtol=1e-12, atol=1e-12)


def test_the_repetition_penalty_comes_before_the_presence_penalty() -> None:
    """As in vLLM's sampler."""
    config = LogitsConfig(repetition_penalty=2.0, presence_penalty=1.0)
    processor = LogitsProcessor(config, np.array([0]), 3)
    processor.append(1)
    assert processor(np.array([4.0, 4.0, 4.0])).tolist() == [2.0, 1.0, 4.0]


def test_a_logit_bias_adds_to_the_checkpoints_own() -> None:
    config = LogitsConfig(logit_bias={1: 2.5, 2: -np.inf}).over(LogitsConfig(sequence_bias=[([1], 1.0)]))
    scores = LogitsProcessor(config, np.array([0]), 4)(np.array([1.0, 1.0, 1.0, 1.0], np.float32))
    assert scores.tolist() == [1.0, 4.5, -np.inf, 1.0]


# Under the sampler

SAMPLED: dict[str, dict[str, Any]] = {
    "public": PUBLIC_MODELS["Qwen/Qwen2.5-VL-7B-Instruct"].generation,
    "silent": {"do_sample": True},
    "warm": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    "min-p": {"do_sample": True, "temperature": 1.3, "top_k": 0, "min_p": 0.1, "no_repeat_ngram_size": 2},
    "excluded": {"do_sample": True, "top_p": 0.95, "suppress_tokens": list(range(0, 200, 3)), "sequence_bias": [[[4], 3.0]]},
}


@pytest.mark.parametrize("name", SAMPLED)
def test_probabilities_are_those_of_transformers(name: str) -> None:
    """float64 on both sides: at the edge of top-p, float32 sums decide either way."""
    chosen = {key: value for key, value in SAMPLED[name].items() if not key.endswith("_token_id")}
    sampling = SamplingConfig(
        chosen.get("temperature", 1.0), chosen.get("top_k", 50), chosen.get("top_p", 1.0), min_p=chosen.get("min_p", 0.0)
    )
    config = LogitsConfig(**{key: value for key, value in chosen.items() if key in LogitsConfig.__dataclass_fields__})
    rng = np.random.default_rng(1)
    for _ in range(10):
        prompt, logits = rng.integers(0, 200, 30), rng.normal(0, 3, 200)
        scores = np.asarray(LogitsProcessor(config, prompt, 200, [3])(logits), np.float64)
        theirs = transformers_processors(chosen, 30, [3])(torch.tensor(prompt)[None], torch.tensor(logits)[None])
        ours = softmax(filter_scores(scores, sampling))
        np.testing.assert_allclose(ours, theirs.softmax(-1)[0].numpy(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_excluded_token_is_never_drawn(temperature: float) -> None:
    processor = LogitsProcessor(LogitsConfig(suppress_tokens=[2, 5], no_repeat_ngram_size=1), np.array([0, 0]), 8)
    sampler = Sampler(SamplingConfig(temperature, seed=0), processor)
    drawn = [sampler.sample(np.zeros(8, np.float32)) for _ in range(5)]
    assert sorted(drawn) == [1, 3, 4, 6, 7]
    with pytest.raises(RequestError, match="exclude every token; ease bad_words_ids") as caught:
        sampler.sample(np.zeros(8, np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("config", [LogitsConfig(repetition_penalty=1e-45), LogitsConfig(logit_bias={1: 1e39})])
def test_scores_beyond_float32_are_refused(temperature: float, config: LogitsConfig) -> None:
    sampler = Sampler(SamplingConfig(temperature), LogitsProcessor(config, np.array([1]), 3))
    with pytest.raises(RequestError, match="too large for float32"):
        sampler.sample(np.array([1.0, 2.0, 3.0], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_the_engine_returned_is_checked_before_anything_is_excluded(value: float) -> None:
    processor = LogitsProcessor(LogitsConfig(suppress_tokens=[1]), np.array([0]), 3)
    with pytest.raises(BackendError, match="1 of 3 logits"):
        Sampler(SamplingConfig(), processor).sample(np.array([0.0, value, 1.0], np.float32))


class CountedBiases(dict[int, float]):
    """Tells how often all of them were walked through."""

    walks = 0

    def items(self) -> Any:
        self.walks += 1
        return super().items()

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()


def test_biases_of_a_whole_vocabulary_are_walked_through_once() -> None:
    """Not at every token: others wait for it.  Sequences that end with such a token have theirs added."""
    size = 50_000
    biases = CountedBiases({token: token % 7 - 3.0 for token in range(size)})
    config = LogitsConfig(logit_bias=biases, sequence_bias=[((5,), 0.5), ((3, 4), 1.25), ((9, 4), 2.0)])
    processor = LogitsProcessor(config, np.array([1, 2]), size)
    walks = biases.walks
    logits = np.random.default_rng(0).normal(0, 4, size).astype(np.float32)
    expected = logits + (np.arange(size) % 7 - 3).astype(np.float32)
    expected[5] = logits[5] + np.float32(5 % 7 - 3 + 0.5)
    for token in (8, 3, 1):
        now = expected.copy()
        if processor._history.ends_with((3,)):
            now[4] = logits[4] + np.float32(4 % 7 - 3 + 1.25)
        assert np.array_equal(processor(logits), now)
        processor.append(token)
    assert biases.walks == walks
