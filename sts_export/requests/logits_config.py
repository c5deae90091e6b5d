"""Settings that change the logits before a token is chosen: penalties, biases and exclusions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

from sts_export.errors import RequestError
from sts_export.requests.numbers import is_integer, is_number
from sts_export.requests.wording import short


@dataclass(frozen=True)
class LogitsConfig:
    """What is done to the logits before a token is chosen.  None leaves a setting as the checkpoint has it.

    All but the OpenAI ones are those of transformers' GenerationConfig, with its meaning (generation/logits_process.py): the
    prompt counts as it was before pruning, with as many image tokens as the pictures have.  Presence and frequency penalties
    are OpenAI's and vLLM's: they count generated tokens alone, logit - count * frequency - (count > 0) * presence.

    Args:
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt and answer; 1 is off.
        presence_penalty: from -2 to 2; 0 is off.
        frequency_penalty: from -2 to 2; 0 is off.
        no_repeat_ngram_size: no run of so many tokens occurs twice in prompt and answer; 0 is off.
        sequence_bias: (token ids, bias) pairs; the bias is added where the last of the ids would complete the sequence.
        logit_bias: token id -> bias, added to those of ``sequence_bias``; {} is off.
        bad_words_ids: sequences of token ids that are never completed; () is off.
        min_length: no end token before prompt and answer have so many tokens; ``min_new_tokens`` goes before it.
        min_new_tokens: no end token before so many new tokens; 0 is off.
        suppress_tokens: token ids never generated; ids that the model does not have are ignored; () is off.
        begin_suppress_tokens: token ids that are not the first generated one.

    Raises:
        RequestError: a value of the wrong kind or out of its range.
    """

    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    sequence_bias: Sequence[tuple[Sequence[int], float]] | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _check_penalty(self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and -2 <= value <= 2):
                raise RequestError(
                    f"{name} must be a number from -2 to 2, not {short(value)}; use 0 to turn it off",
                    field=name,
                )
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            value = getattr(self, name)
            if value is not None and not (is_integer(value) and value >= 0):
                raise RequestError(
                    f"{name} must be a whole number of at least 0, not {short(value)}; use 0 to turn it off",
                    field=name,
                )
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            value = getattr(self, name)
            if value is not None and not (_is_list(value) and all(map(is_integer, value))):
                raise RequestError(
                    f"{name} must be a list of token ids, not {short(value)}; use an empty one to turn it off",
                    field=name,
                )
        words = self.bad_words_ids
        if words is not None and not (_is_list(words) and all(map(_is_sequence_of_ids, words))):
            raise RequestError(
                f"bad_words_ids must be a list of lists of token ids, not {short(words)}; use an empty one to turn it off"
            )
        _check_sequence_bias(self.sequence_bias)
        _check_logit_bias(self.logit_bias)

    @property
    def changes_nothing(self) -> bool:
        """Every setting is None or off."""
        others = (getattr(self, field.name) for field in fields(self) if field.name != "repetition_penalty")
        return self.repetition_penalty in (None, 1) and not any(others)

    def over(self, defaults: LogitsConfig) -> LogitsConfig:
        """These settings, and those of ``defaults`` where they are None."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(defaults, **{name: value for name, value in own.items() if value is not None})

    def least_new_tokens(self, prompt_tokens: int) -> int:
        """New tokens before the first end token, after a prompt of so many tokens."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(0, (self.min_length or 0) - prompt_tokens)

    def check_vocabulary(self, size: int, *, of_request: bool = False) -> None:
        """Raises RequestError for token ids that a vocabulary of this size does not have.

        In lists of suppressed tokens they are mistakes of a request; transformers passes over a checkpoint's.
        """
        suppressed = [*(self.suppress_tokens or ()), *(self.begin_suppress_tokens or ())] if of_request else []
        sequences = {
            "suppress_tokens": [(token,) for token in suppressed],
            "bad_words_ids": self.bad_words_ids or (),
            "sequence_bias": [ids for ids, _ in self.sequence_bias or ()],
            "logit_bias": [(token,) for token in self.logit_bias or {}],
        }
        for name, listed in sequences.items():
            beyond = next((token for ids in listed for token in ids if not 0 <= token < size), None)
            if beyond is not None:
                raise RequestError(f"{name} names token {beyond}; the model has token ids from 0 to {size - 1}", field=name)


def _check_penalty(value: object) -> None:
    if value is not None and not (is_number(value) and 0 < value < math.inf):
        raise RequestError(
            f"repetition_penalty must be a number above 0, not {short(value)}; use 1 to turn it off",
            field="repetition_penalty",
        )


def _check_sequence_bias(value: object) -> None:
    if value is None:
        return
    pairs = value if _is_list(value) else [None]
    if not all(_is_list(pair) and len(pair) == 2 and _is_sequence_of_ids(pair[0]) and _is_bias(pair[1]) for pair in pairs):
        raise RequestError(
            f"sequence_bias must be a list of [token ids, number] pairs, not {short(value)}; use an empty one to turn it off"
        )


def _check_logit_bias(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise RequestError(
            f"logit_bias must map token ids to numbers, not be {short(value)}; use {{}} to turn it off",
            field="logit_bias",
        )
    for token, bias in value.items():
        if not (is_integer(token) and token >= 0 and _is_bias(bias)):
            raise RequestError(
                f"logit_bias maps token ids to numbers, not {short(token)} to {short(bias)}; give a finite one or -inf",
                field="logit_bias",
            )


def _is_bias(value: object) -> bool:
    """-inf excludes a token; infinity and NaN leave no order among the others."""
    return is_number(value) and value < math.inf


def _is_sequence_of_ids(value: object) -> bool:
    return _is_list(value) and len(value) > 0 and all(is_integer(token) and token >= 0 for token in value)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
