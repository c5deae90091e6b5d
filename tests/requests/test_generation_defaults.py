"""A checkpoint's generation settings: what is read, what transformers reads, what is named as not followed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from sts_export.errors import CheckpointError
from sts_export.requests import generation_defaults as module
from sts_export.requests.generation_defaults import GenerationDefaults, read_generation_defaults
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.testing.public_models import PUBLIC_MODELS

VOCAB = 1000
SAVED = {"num_beams": 1, "max_length": 20}  # what an older transformers wrote into every config


def read(folder: Path, settings: dict[str, Any] | None, **config: Any) -> GenerationDefaults:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", **config}))
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return read_generation_defaults(folder, VOCAB)


def test_the_public_qwen(tmp_path: Path) -> None:
    defaults = read(tmp_path, PUBLIC_MODELS["Qwen/Qwen2.5-VL-7B-Instruct"].generation)
    assert defaults.logits == LogitsConfig(repetition_penalty=1.05)
    assert defaults.sampling == SamplingConfig(temperature=1e-6, top_k=50)
    assert (defaults.stop, defaults.ignored) == ((), ())


@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_every_setting_of_the_public_models_is_followed(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, PUBLIC_MODELS[name].generation).ignored == ()


def test_where_the_file_is_silent_transformers_defaults_hold(tmp_path: Path) -> None:
    usual = GenerationConfig._get_default_generation_params()
    sampling = read(tmp_path, {}).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (usual["temperature"], usual["top_k"], usual["top_p"])
    assert usual.get("min_p") is None and sampling.min_p == 0 and sampling.seed is None
    assert read(tmp_path, {"top_k": None, "temperature": None, "repetition_penalty": None}).sampling == sampling
    assert read(tmp_path, {}).logits == LogitsConfig()


def test_every_setting_that_is_followed(tmp_path: Path) -> None:
    settings = {
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 2,
        "no_repeat_ngram_size": 3,
        "sequence_bias": [[[5], 1.5], [[6, 7], -2.0]],
        "bad_words_ids": [[8], [9, 10]],
        "min_length": 4,
        "min_new_tokens": 3,
        "suppress_tokens": [11, 5000],
        "begin_suppress_tokens": [12],
        "stop_strings": "END",
        "max_new_tokens": 128,
    }
    defaults = read(tmp_path, settings)
    assert defaults.sampling == SamplingConfig(0.7, 0, 0.8, min_p=0.05)
    for name, value in settings.items():
        if name in LogitsConfig.__dataclass_fields__:
            assert getattr(defaults.logits, name) == value, name
    assert (defaults.stop, defaults.new_tokens, defaults.ignored) == (("END",), 128, ())
    assert read(tmp_path, {"stop_strings": ["a", "b"], "top_p": 0}).stop == ("a", "b")


@pytest.mark.parametrize("part", ["top", "text_config"])
def test_without_the_file_settings_are_in_the_config(tmp_path: Path, part: str) -> None:
    """As transformers reads checkpoints that never had a generation_config.json; its reader is the other side."""
    old = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "top_k": 7,
        "hidden_size": 48,
        "num_beams": 1,
        "max_length": 20,
    }
    config = old if part == "top" else {"text_config": old}
    defaults = read(tmp_path, None, **config)
    theirs = GenerationConfig.from_model_config({"model_type": "llava", **config})
    assert (defaults.logits.repetition_penalty, defaults.logits.no_repeat_ngram_size) == (1.3, 2)
    assert (theirs.repetition_penalty, theirs.no_repeat_ngram_size, theirs.top_k) == (1.3, 2, 7)
    assert defaults.sampling.top_k == 7 and defaults.ignored == ()
    assert read(tmp_path, {}, **config).logits == LogitsConfig()  # a file goes before the config


def test_the_whole_config_goes_before_the_decoders(tmp_path: Path) -> None:
    config = {
        "repetition_penalty": 1.2,
        "min_new_tokens": None,
        "text_config": {"repetition_penalty": 1.5, "min_new_tokens": 2},
    }
    assert read(tmp_path, None, **config).logits == LogitsConfig(repetition_penalty=1.2, min_new_tokens=2)
    theirs = GenerationConfig.from_model_config(config)
    assert (theirs.repetition_penalty, theirs.min_new_tokens) == (1.2, 2)


NOT_FOLLOWED = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "penalty_alpha": 0.6,
    "guidance_scale": 1.5,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "top_h": 0.5,
    "dola_layers": "high",
    "max_time": 3.0,
    "max_length": 4096,
    "watermarking_config": {"greenlist_ratio": 0.25},
    "exponential_decay_length_penalty": [5, 1.1],
    "forced_eos_token_id": 2,
    "remove_invalid_values": True,
    "token_healing": True,
    "encoder_repetition_penalty": 1.2,
    "encoder_no_repeat_ngram_size": 3,
    "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 5,
    "assistant_early_exit": 3,
    "presence_penalty": 1.5,  # of vLLM's, not of transformers'
    "a_later_setting": 1,
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_settings_that_are_not_followed_are_named(tmp_path: Path, name: str) -> None:
    (shown,) = read(tmp_path, {name: NOT_FOLLOWED[name], "repetition_penalty": 1.1, "eos_token_id": 2}).ignored
    assert shown.startswith(f"{name} ") and "\n" not in shown and len(shown) < 90


def test_transformers_own_defaults_and_what_changes_no_token_are_not_named(tmp_path: Path) -> None:
    """Among them every default that an older transformers wrote into the file."""
    usual = GenerationConfig._get_default_generation_params()
    harmless = {
        "_from_model_config": True,
        "transformers_version": "4.49.0",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "do_sample": True,
        "use_cache": True,
        "cache_implementation": "static",
        "output_scores": True,
        "num_assistant_tokens": 7,
        "early_stopping": True,
        "renormalize_logits": True,
    }
    assert read(tmp_path, {**usual, **harmless}).ignored == ()


def test_every_setting_of_transformers_is_followed_harmless_or_named(tmp_path: Path) -> None:
    """Those of the installed release, which may have some that nobody has thought about."""
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    rest = names - module._FOLLOWED - module._HARMLESS
    assert len(rest) > 10
    assert {name for name in rest if _ignored(tmp_path, name, "x")} == rest


def _ignored(folder: Path, name: str, value: Any) -> bool:
    try:
        return bool(read(folder, {name: value}).ignored)
    except CheckpointError:  # followed, and refused for its kind
        return False


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": "1.05"},
        {"repetition_penalty": 0},
        {"no_repeat_ngram_size": -1},
        {"suppress_tokens": 5},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[VOCAB]]},
        {"sequence_bias": {"5": 1.0}},
        {"sequence_bias": [[[VOCAB + 1], 1.0]]},
        {"min_new_tokens": "many"},
        {"max_new_tokens": 0},
        {"max_new_tokens": "all"},
        {"repetition_penalty": 10**400},
        {"sequence_bias": [[[5], 10**400]]},
        {"temperature": 10**400},
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_k": 5.5},
        {"top_p": 1.5},
        {"min_p": 2},
        {"stop_strings": [5]},
        {"stop_strings": [""]},
        {"stop_strings": 5},
    ],
    ids=str,
)
def test_wrong_values_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, settings)
    message = str(caught.value)
    assert (
        "generation_config.json: " in message and next(iter(settings)) in message and "\n" not in message and len(message) < 900
    )
    assert message.endswith("; correct the file or restore the original one")
