"""How a checkpoint wants to be generated from: what transformers' ``generate`` reads from its files."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sts_export.checkpoints.checkpoint import read_json
from sts_export.errors import CheckpointError, RequestError
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.request import check_count
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.requests.wording import short

# OpenAI's settings, which transformers does not read from a checkpoint.
_REQUEST_ONLY = frozenset(("presence_penalty", "frequency_penalty", "logit_bias"))
_LOGITS = tuple(field.name for field in fields(LogitsConfig) if field.name not in _REQUEST_ONLY)
# Where a file is silent, ``generate`` uses these (GenerationConfig._get_default_generation_params, transformers 5.24).
USUAL_SAMPLING = SamplingConfig(temperature=1.0, top_k=50)
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_FOLLOWED = frozenset((*_LOGITS, *_SAMPLING, "do_sample", "stop_strings", "max_new_tokens", "eos_token_id"))
# Settings that change no token of a decoder's answer, or only refine one of those below.
_HARMLESS = frozenset(
    (
        *("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash"),
        *("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("renormalize_logits", "compile_config", "disable_compile", "continuous_batching_config"),
        *("early_stopping", "length_penalty", "diversity_penalty"),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size"),
    )
)
# Settings that are not followed, each with the value at which there is nothing to follow.
_NOT_FOLLOWED = {
    "max_length": 20,
    "max_time": None,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "constraints": None,
    "force_words_ids": None,
    "penalty_alpha": 0,
    "dola_layers": None,
    "guidance_scale": 1,
    "top_h": None,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "token_healing": False,
    "watermarking_config": None,
    "use_mtp": False,
    "speculation_type": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "assistant_ensemble_weight": None,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """A checkpoint's own generation settings.

    Args:
        logits: penalties, biases and exclusions; None where the checkpoint has none.
        sampling: what ``generate(do_sample=True)`` uses.
        stop: stop strings.
        new_tokens: at most so many in an answer; None where only the capacity limits it.
        ignored: settings that are not followed, each as "name value".
    """

    logits: LogitsConfig
    sampling: SamplingConfig
    stop: tuple[str, ...]
    new_tokens: int | None
    ignored: tuple[str, ...]


def read_generation_defaults(folder: Path, vocab_size: int) -> GenerationDefaults:
    """The settings of a checkpoint or bundle.

    As in transformers, they are in generation_config.json; without that file, those that config.json has, or else its
    text_config.

    Raises:
        CheckpointError: a value of the wrong kind or out of its range, or a token that the model does not have.
    """
    settings, file = _settings(folder)
    try:
        logits = LogitsConfig(**{name: settings[name] for name in _LOGITS if name in settings})
        logits.check_vocabulary(vocab_size)
        sampling = replace(USUAL_SAMPLING, **_sampling(settings))
        stop = _stop_strings(settings.get("stop_strings", ()))
        if (new_tokens := settings.get("max_new_tokens")) is not None:
            check_count("max_new_tokens", new_tokens)
    except RequestError as error:
        raise CheckpointError(f"{file}: {error}; correct the file or restore the original one") from None
    unknown = settings.keys() - _FOLLOWED - _HARMLESS
    ignored = [name for name in sorted(unknown) if settings[name] != _NOT_FOLLOWED.get(name)]
    named = tuple(f"{name} {short(settings[name], 40)}" for name in ignored)
    return GenerationDefaults(logits, sampling, stop, new_tokens, named)


def _settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """Every setting that is not null, and the file they are in."""
    file = folder / "generation_config.json"
    if file.is_file():
        return {name: value for name, value in read_json(file).items() if value is not None}, file
    file = folder / "config.json"
    config = read_json(file)
    text = config.get("text_config")
    both = {
        name: value for part in (text, config) if isinstance(part, dict) for name, value in part.items() if value is not None
    }
    return {name: value for name, value in both.items() if name in _FOLLOWED | _HARMLESS | _NOT_FOLLOWED.keys()}, file


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: settings[name] for name in _SAMPLING if name in settings}
    if chosen.get("top_p") == 0:  # transformers then keeps the most likely token
        chosen["top_p"] = sys.float_info.min
    return chosen


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(text, str) and text for text in strings):
        raise RequestError(f"stop_strings must be a list of non-empty strings, not {short(value)}")
    return tuple(strings)
