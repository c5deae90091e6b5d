"""Sampler: greedy, filters against transformers' logits warpers, repeatability, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import BackendError, RequestError
from sts_export.generation.sampling import Sampler, filter_scores, softmax
from sts_export.requests.sampling_config import SamplingConfig


def test_greedy_takes_the_lowest_of_equal_maxima() -> None:
    sampler = Sampler(SamplingConfig())
    assert sampler.sample(np.array([0.0, 2.0, 1.0, 2.0], np.float32)) == 1
    assert sampler.sample(np.array([5.0])) == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_float_types(dtype: str) -> None:
    import ml_dtypes

    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    token = Sampler(SamplingConfig()).sample(np.array([1, 3, 2]).astype(kind))
    assert token == 1 and type(token) is int


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 60, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.4, 1.0])
def test_filters_equal_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for seed in range(5):
        logits = np.random.default_rng(seed).normal(0, 3, 100)
        expected = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits)[None])
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        if min_p:
            expected = MinPLogitsWarper(min_p)(None, expected)
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        probabilities = softmax(filter_scores(logits, config))
        np.testing.assert_allclose(probabilities, expected.softmax(-1)[0].numpy(), rtol=1e-9, atol=1e-15)


def test_ties_at_the_top_k_limit_all_stay() -> None:
    kept = filter_scores(np.array([1.0, 3.0, 2.0, 2.0, 0.0]), SamplingConfig(temperature=1.0, top_k=2))
    assert np.isfinite(kept).tolist() == [False, True, True, True, False]


@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40),
    temperature=st.floats(1e-3, 50),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.001, 1),
    seed=st.integers(0, 2**64),
)
@settings(deadline=None, derandomize=True)
def test_a_sample_is_never_an_excluded_token(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    config = SamplingConfig(temperature, top_k, top_p, seed)
    values = np.array(logits)
    token = Sampler(config).sample(values)
    assert softmax(filter_scores(values, config))[token] > 0
    assert Sampler(config).sample(values) == token
    np.testing.assert_array_equal(values, logits)


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingConfig(temperature=1.0, seed=0))
    logits = np.log(np.array([0.5, 0.3, 0.0001, 0.1999]))
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, np.exp(logits), atol=0.03)


def test_seeds() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed))
        return [sampler.sample(np.zeros(1000)) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    assert Sampler(SamplingConfig(temperature=temperature)).sample(np.array([-1e30, 3.0, 2.0])) == 1


def test_numpy_settings() -> None:
    settings: list[Any] = [np.float32(0.5), np.int64(3), np.float32(0.9), np.uint64(3)]
    SamplingConfig(*settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(value: float, temperature: float) -> None:
    with pytest.raises(BackendError) as caught:
        Sampler(SamplingConfig(temperature)).sample(np.array([0.0, value, 1.0], np.float32))
    assert "1 of 3 logits" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(0,), (1, 5), ()])
def test_logits_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match=r"not \[vocab\]"):
        Sampler(SamplingConfig()).sample(np.zeros(shape))


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_p": None},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": True},
        {"seed": -1},
        {"seed": 1.0},
        {"seed": "x"},
    ],
)
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingConfig(**setting)
    message = str(caught.value)
    assert message.startswith(next(iter(setting))) and "\n" not in message and ";" in message


def test_top_p_at_its_limits() -> None:
    equal = np.zeros(4)
    kept = filter_scores(equal, SamplingConfig(temperature=1.0, top_p=0.5))
    assert np.isfinite(kept).tolist() == [False, False, True, True]  # transformers excludes what sums to 1 - top_p exactly
    kept = filter_scores(np.array([1.0, 2.0, 0.0]), SamplingConfig(temperature=1.0, top_p=1e-20))
    assert np.isfinite(kept).tolist() == [False, True, False]


def test_the_smallest_draw_passes_over_excluded_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def random(self) -> float:
            return 0.0

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Zero())
    assert Sampler(SamplingConfig(temperature=1.0, top_k=1)).sample(np.array([0.0, 1.0, 5.0])) == 2
