"""Change the logits before a token is chosen, as transformers does and in its order; numpy only.

The order is that of ``_get_logits_processor`` in transformers' generation/utils.py: biases, repetition penalty, exclusions.
Presence and frequency penalties, which transformers has not, come after the repetition penalty, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sts_export.generation.token_history import TokenHistory
from sts_export.requests.logits_config import LogitsConfig

Scores = NDArray[np.float32] | NDArray[np.float64]
Sequences = Sequence[tuple[tuple[int, ...], float]]


class Biases:
    """Biases of single tokens, in arrays: a request may have one for every token of its vocabulary.

    Args:
        single: token id -> bias.
    """

    def __init__(self, single: Mapping[int, float]) -> None:
        self._single = single
        self._tokens, self._values = np.array(list(single), np.int64), np.array(list(single.values()), np.float64)

    def __bool__(self) -> bool:
        return bool(self._single)

    def added_to(self, scores: Scores, sequences: Sequences = ()) -> Scores:
        """Scores [vocab] with them, and with those of sequences at their last tokens; biases of the same token add up."""
        changed = scores.copy()
        with np.errstate(over="ignore"):  # the sampler refuses infinity
            changed[self._tokens] += self._values.astype(scores.dtype)
            for token, bias in _totals(sequences).items():
                changed[token] = scores[token] + scores.dtype.type(self._single.get(token, 0.0) + bias)
        return changed


class LogitsProcessor:
    """The processors of one request and the tokens that they look at.

    Args:
        config: resolved settings; None and neutral values are off.
        prompt_ids: [tokens] int64 of the unpruned prompt.
        vocab_size: number of logits.
        end_tokens: ids that end the answer; none where they are ignored.
    """

    def __init__(
        self, config: LogitsConfig, prompt_ids: NDArray[np.int64], vocab_size: int, end_tokens: Iterable[int] = ()
    ) -> None:
        self._history = TokenHistory(prompt_ids, vocab_size, int(config.no_repeat_ngram_size or 0))
        self._penalty = 1.0 if config.repetition_penalty is None else float(config.repetition_penalty)
        self._presence = float(config.presence_penalty or 0)
        self._frequency = float(config.frequency_penalty or 0)
        # transformers counts a sequence that is named twice once, with its last bias.
        biases = {tuple(ids): float(bias) for ids, bias in config.sequence_bias or ()}
        single = [*biases.items(), *(((token,), float(bias)) for token, bias in (config.logit_bias or {}).items())]
        self._biases = Biases(_totals((ids, bias) for ids, bias in single if len(ids) == 1))
        self._sequences = [(ids, bias) for ids, bias in biases.items() if len(ids) > 1]
        self._ends, self._least = _within(end_tokens, vocab_size), config.least_new_tokens(len(prompt_ids))
        words = {tuple(word) for word in config.bad_words_ids or ()} - {(end,) for end in self._ends}
        self._words = [(word, -np.inf) for word in words if len(word) > 1]
        alone = [word[0] for word in words if len(word) == 1]
        self._never = np.array([*_within(config.suppress_tokens or (), vocab_size), *alone], np.int64)
        self._not_first = _within(config.begin_suppress_tokens or (), vocab_size)

    def __call__(self, logits: Scores) -> Scores:
        """[vocab] -> [vocab] of the same type: the next token's scores, -inf where it is excluded."""
        history, scores = self._history, logits
        if self._biases or self._sequences:
            scores = self._biases.added_to(scores, completed(self._sequences, history))
        if self._penalty != 1:
            scores = penalize_repetition(scores, history.seen, self._penalty)
        if self._presence or self._frequency:
            scores = penalize_generated(scores, history.counts, self._presence, self._frequency)
        excluded = np.concatenate([self._never, self._excluded_now()])
        return exclude(scores, excluded) if len(excluded) else scores

    def append(self, token: int) -> None:
        """Tell which token was chosen."""
        self._history.append(token)

    def _excluded_now(self) -> NDArray[np.int64]:
        """Exclusions come last and do not depend on each other: one list of token ids, those aside that always hold."""
        history = self._history
        tokens = _within(history.followers(), len(history.seen))
        tokens += [ids[-1] for ids, _ in completed(self._words, history)]
        if history.generated < self._least:
            tokens += self._ends
        if not history.generated:
            tokens += self._not_first
        return np.array(tokens, np.int64)


def penalize_repetition(scores: Scores, seen: NDArray[np.bool_], penalty: float) -> Scores:
    """Scores of seen tokens, [vocab] bool, are divided by the penalty if positive and multiplied by it if negative."""
    changed, tokens = scores.copy(), np.flatnonzero(seen)
    theirs = scores[tokens]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # the sampler refuses infinity
        changed[tokens] = np.where(theirs < 0, theirs * penalty, theirs / penalty)
    return changed


def penalize_generated(scores: Scores, counts: NDArray[np.int64], presence: float, frequency: float) -> Scores:
    """Subtract ``counts * frequency`` and, from what was generated at all, ``presence``; counts are [vocab] int64."""
    changed, tokens = scores.copy(), np.flatnonzero(counts)
    changed[tokens] -= (counts[tokens] * frequency + presence).astype(scores.dtype)
    return changed


def exclude(scores: Scores, tokens: NDArray[np.int64]) -> Scores:
    """-inf for these tokens."""
    changed = scores.copy()
    changed[tokens] = -np.inf
    return changed


def completed(sequences: Sequences, history: TokenHistory) -> Sequences:
    """Of sequences with their biases, those that their last token would complete now."""
    return [(ids, bias) for ids, bias in sequences if len(ids) == 1 or history.ends_with(ids[:-1])]


def _totals(sequences: Iterable[tuple[tuple[int, ...], float]]) -> dict[int, float]:
    """Last token -> sum of the biases."""
    totals: dict[int, float] = {}
    for ids, bias in sequences:
        totals[ids[-1]] = totals.get(ids[-1], 0.0) + bias
    return totals


def _within(tokens: Iterable[int], vocab_size: int) -> list[int]:
    return [int(token) for token in tokens if 0 <= token < vocab_size]
