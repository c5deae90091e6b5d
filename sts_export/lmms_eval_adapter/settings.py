"""What lmms-eval says about generation, as settings of a pipeline: a task's ``generation_kwargs``, and ``--gen_kwargs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sts_export.errors import RequestError
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.numbers import is_number
from sts_export.requests.request import check_count
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.requests.wording import short

if TYPE_CHECKING:
    from sts_export.generation.pipeline import Pipeline

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_LOGITS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "min_new_tokens")
_FOLLOWED = frozenset(("max_new_tokens", "until", "do_sample", "seed", *_SAMPLING, *_LOGITS))
# There is one answer by one beam: the value of each that says so.
_ONE = {"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1}
# They change no token of a greedy or sampled answer; how pictures are prepared is fixed when a bundle is exported.
_WITHOUT_EFFECT = frozenset(("use_cache", "early_stopping", "length_penalty", "image_aspect_ratio"))
_BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class Settings:
    """Of one request; those that are equal may run together.

    Args:
        max_new_tokens: None takes the checkpoint's limit or, without one, what fits.
        stop: strings that end the answer.
    """

    max_new_tokens: int | None
    sampling: SamplingConfig
    stop: tuple[str, ...]
    logits: LogitsConfig

    @property
    def arguments(self) -> dict[str, Any]:
        """For :meth:`Pipeline.generate` and :meth:`Pipeline.stream`."""
        return {"max_new_tokens": self.max_new_tokens, "sampling": self.sampling, "stop": self.stop, "logits": self.logits}


def read_settings(
    given: Mapping[str, Any], pipeline: Pipeline, *, max_new_tokens: int | None = None, seed: int | None = None
) -> Settings:
    """The settings of one request.

    Where ``do_sample`` is true or, without it, the temperature above 0, tokens are sampled as by transformers' ``generate``
    with this checkpoint; else the answer is greedy and what only refines sampling is passed over, as it is there.  ``until``
    adds to the checkpoint's own stop strings, but for a blank line: lmms-eval puts that there for every task that says nothing,
    and it would cut answers of several paragraphs.

    Args:
        given: a task's ``generation_kwargs``, with ``--gen_kwargs`` over them; None is as if it were not given.
        max_new_tokens: where ``given`` has none, or more.
        seed: where ``given`` has none.

    Raises:
        RequestError: a setting that is not known or not supported, or a value of the wrong kind or out of its range.

    Source: lmms_eval/api/task.py, ``TaskConfig``, and lmms_eval/models/simple/qwen2_5_vl.py, which does so, too.
    """
    named = {name: value for name, value in given.items() if value is not None}
    for name, only in _ONE.items():
        if named.get(name, only) != only:
            said = f"{name} {short(named[name])} is not supported"
            raise RequestError(f"{said}: a bundle gives one greedy or sampled answer; use {only}")
    unknown = sorted(named.keys() - _FOLLOWED - _ONE.keys() - _WITHOUT_EFFECT)
    if unknown:
        known = ", ".join(sorted(_FOLLOWED))
        raise RequestError(f"generation setting {unknown[0]!r} is not known; leave it out, or use one of {known}")
    seed = named.get("seed", seed)
    if _samples(named):
        chosen = pipeline.sampling_defaults(**{name: named[name] for name in _SAMPLING if name in named}, seed=seed)
    else:
        chosen = SamplingConfig(seed=seed)  # stages that draw take it, too
    logits = LogitsConfig(**{name: named[name] for name in _LOGITS if name in named})
    stop = (*pipeline.generation_defaults.stop, *_stop_strings(named.get("until", ())))
    return Settings(_smaller(named.get("max_new_tokens"), max_new_tokens), chosen, tuple(dict.fromkeys(stop)), logits)


def _smaller(asked: Any, most: int | None) -> int | None:
    if asked is None:
        return most
    check_count("max_new_tokens", asked)
    return int(asked) if most is None else min(int(asked), most)


def _samples(named: Mapping[str, Any]) -> bool:
    do_sample, temperature = named.get("do_sample"), named.get("temperature", 0)
    if do_sample is not None and not isinstance(do_sample, bool):
        raise RequestError(f"do_sample must be true or false, not {short(do_sample)}; correct it")
    if not is_number(temperature) or temperature < 0:
        raise RequestError(f"temperature must be a number of at least 0, not {short(temperature)}; use 0 for greedy decoding")
    return bool(temperature > 0 if do_sample is None else do_sample)


def _stop_strings(until: object) -> tuple[str, ...]:
    strings = [until] if isinstance(until, str) else until
    if not isinstance(strings, (list, tuple)) or not all(isinstance(text, str) and text for text in strings):
        raise RequestError(f"until must be a list of non-empty texts, not {short(until)}; correct it")
    return tuple(text for text in strings if text != _BLANK_LINE)
