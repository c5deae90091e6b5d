"""LogitsConfig: what is refused, what is off, and how a request goes before the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from sts_export.errors import RequestError
from sts_export.requests.logits_config import LogitsConfig


def values(name: str, wrong: Iterable[object]) -> list[dict[str, object]]:
    return [{name: value} for value in wrong]


@pytest.mark.parametrize(
    "setting",
    [
        *values("repetition_penalty", (0, -1.0, "1.1", True, float("nan"), float("inf"))),
        *values("presence_penalty", (2.1, -2.1, "0", float("nan"), True)),
        *values("frequency_penalty", (3, float("-inf"), [])),
        *values("no_repeat_ngram_size", (-1, 2.0, "3", True)),
        *values("min_new_tokens", (-1, 1.5)),
        *values("min_length", (-1, "9")),
        *values("suppress_tokens", (5, "5", [1.5], [True], [[1]])),
        *values("begin_suppress_tokens", ({}, 7)),
        *values("bad_words_ids", (5, [5], [[]], [["a"]], [[-1]], ["ab"])),
        *values("sequence_bias", (5, {}, [[1, 2.0]], [[[1]]], [[[1], "x"]], [[[], 1.0]], [[[1], float("inf")]])),
        *values("logit_bias", ([], {-1: 1.0}, {"1": 1.0}, {1: float("nan")}, {1: float("inf")}, {1: None})),
    ],
    ids=str,
)
def test_wrong_values(setting: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        LogitsConfig(**setting)
    message = str(caught.value)
    assert message.startswith(next(iter(setting))) and "\n" not in message and ";" in message


def test_numpy_values() -> None:
    given: dict[str, Any] = {
        "repetition_penalty": np.float32(1.1),
        "presence_penalty": np.float64(0.5),
        "frequency_penalty": 0,
        "no_repeat_ngram_size": np.int64(2),
        "logit_bias": {np.int64(3): np.float32(1)},
    }
    config = LogitsConfig(**given)
    assert not config.changes_nothing


@pytest.mark.parametrize(
    "off",
    [
        {"repetition_penalty": 1.0},
        {"presence_penalty": 0.0, "frequency_penalty": 0},
        {"no_repeat_ngram_size": 0, "min_new_tokens": 0, "min_length": 0},
        {"bad_words_ids": [], "suppress_tokens": (), "begin_suppress_tokens": [], "sequence_bias": (), "logit_bias": {}},
    ],
)
def test_neutral_values_turn_the_checkpoints_off(off: dict[str, Any]) -> None:
    on: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "min_length": 5,
        "bad_words_ids": [[1]],
        "suppress_tokens": [1],
        "begin_suppress_tokens": [1],
        "sequence_bias": [([1], 1.0)],
        "logit_bias": {1: 1.0},
    }
    checkpoint = LogitsConfig(**{name: on[name] for name in off})
    assert LogitsConfig().changes_nothing and not checkpoint.changes_nothing
    assert LogitsConfig(**off).over(checkpoint).changes_nothing
    assert LogitsConfig().over(checkpoint) == checkpoint


def test_min_new_tokens_goes_before_min_length() -> None:
    assert LogitsConfig(min_length=10).least_new_tokens(7) == 3
    assert LogitsConfig(min_length=10).least_new_tokens(12) == 0
    assert LogitsConfig(min_length=10, min_new_tokens=1).least_new_tokens(7) == 1
    assert LogitsConfig(min_new_tokens=0).over(LogitsConfig(min_length=10)).least_new_tokens(7) == 0


@pytest.mark.parametrize(
    "setting", [{"bad_words_ids": [[1], [2, 9]]}, {"sequence_bias": [([9], 1.0)]}, {"logit_bias": {9: 1.0}}], ids=str
)
def test_tokens_that_the_model_does_not_have(setting: dict[str, Any]) -> None:
    LogitsConfig(**setting).check_vocabulary(10)
    with pytest.raises(RequestError, match="names token 9; the model has token ids from 0 to 8"):
        LogitsConfig(**setting).check_vocabulary(9)
