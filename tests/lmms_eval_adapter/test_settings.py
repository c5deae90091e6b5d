"""What tasks of lmms-eval say about generation, as settings of a pipeline."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sts_export import Pipeline
from sts_export.errors import RequestError
from sts_export.lmms_eval_adapter.settings import Settings, read_settings
from sts_export.requests.generation_defaults import USUAL_SAMPLING
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.sampling_config import SamplingConfig

CHECKPOINT_STOP = ("###",)


def sampling_defaults(**given: Any) -> SamplingConfig:
    return replace(USUAL_SAMPLING, **{"top_p": 0.9, **{name: value for name, value in given.items() if value is not None}})


PIPELINE = cast(
    Pipeline, SimpleNamespace(generation_defaults=SimpleNamespace(stop=CHECKPOINT_STOP), sampling_defaults=sampling_defaults)
)


def read(defaults: dict[str, Any] | None = None, **given: Any) -> Settings:
    return read_settings(given, PIPELINE, **(defaults or {}))


def test_what_most_tasks_say_is_greedy() -> None:
    settings = read(max_new_tokens=16, temperature=0, top_p=1.0, num_beams=1, do_sample=False, until=["ASSISTANT:"])
    assert settings == Settings(16, SamplingConfig(), ("###", "ASSISTANT:"), LogitsConfig())
    assert settings.arguments["stop"] == ("###", "ASSISTANT:")


def test_the_blank_line_of_tasks_that_say_nothing_ends_no_answer() -> None:
    assert read(until=["\n\n"]) == read(until="\n\n") == read()
    assert read(until=["\n\n", "\n"]).stop == ("###", "\n")


def test_nothing_said_is_greedy_with_the_limits_of_the_checkpoint() -> None:
    assert read() == Settings(None, SamplingConfig(), CHECKPOINT_STOP, LogitsConfig())
    assert read(temperature=None, top_p=None, num_beams=None, until=None, max_new_tokens=None) == read()


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({"temperature": 0.5}, replace(USUAL_SAMPLING, temperature=0.5, top_p=0.9)),
        ({"do_sample": True}, replace(USUAL_SAMPLING, top_p=0.9)),
        ({"do_sample": True, "top_k": 5, "seed": 3}, replace(USUAL_SAMPLING, top_k=5, top_p=0.9, seed=3)),
        ({"do_sample": False, "temperature": 0.5, "top_p": 0}, SamplingConfig()),
        ({"temperature": 0.0, "top_p": 0}, SamplingConfig()),
        ({"seed": 3}, SamplingConfig(seed=3)),
    ],
)
def test_sampling(given: dict[str, Any], sampling: SamplingConfig) -> None:
    assert read(**given).sampling == sampling


def test_sampling_at_temperature_0_is_greedy() -> None:
    assert read(do_sample=True, temperature=0).sampling.temperature == 0


def test_defaults_stand_back() -> None:
    defaults = {"max_new_tokens": 32, "seed": 7}
    assert read(defaults).max_new_tokens == 32 and read(defaults).sampling.seed == 7
    given = read(defaults, max_new_tokens=5, seed=1)
    assert given.max_new_tokens == 5 and given.sampling.seed == 1


def test_a_limit_of_the_model_goes_before_a_larger_one_of_the_task() -> None:
    assert read({"max_new_tokens": 32}, max_new_tokens=1024).max_new_tokens == 32


def test_one_stop_string_and_the_same_one_twice() -> None:
    assert read(until="A").stop == ("###", "A")
    assert read(until=["###", "A", "A"]).stop == ("###", "A")


def test_penalties() -> None:
    assert read(repetition_penalty=1.2, min_new_tokens=2).logits == LogitsConfig(repetition_penalty=1.2, min_new_tokens=2)


def test_what_has_no_effect_is_passed_over() -> None:
    assert read(use_cache=True, image_aspect_ratio="original", num_return_sequences=1) == read()


def test_settings_tell_requests_apart_that_cannot_run_together() -> None:
    assert len({read(), read(until=[]), read(seed=1), read(max_new_tokens=3), read(until="A")}) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": "many"}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"num_beams": 5}, "num_beams 5 is not supported"),
        ({"num_return_sequences": 2}, "num_return_sequences 2 is not supported"),
        ({"contrastive": 1}, "generation setting 'contrastive' is not known"),
        ({"do_sample": "yes"}, "do_sample must be true or false, not 'yes'"),
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"temperature": -1}, "temperature must be a number"),
        ({"temperature": 1, "top_p": 2}, "top_p must be above 0"),
        ({"until": 3}, "until must be a list"),
        ({"until": [""]}, "until must be a list"),
        ({"until": ["a", 1]}, "until must be a list"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
    ],
)
def test_refusals(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        read(**given)
    assert "\n" not in str(caught.value)
