"""Choose the next token from the last position's logits; numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import BackendError, RequestError
from sts_export.generation.logits_processors import LogitsProcessor
from sts_export.requests.grammars.compiling import GrammarState
from sts_export.requests.sampling_config import SamplingConfig


class Sampler:
    """Draws tokens one after another; its random state starts from the configuration's seed.

    Args:
        config: how to choose.
        processor: changes the logits first, and is told what was chosen; None leaves them alone.
        grammar: excludes tokens after that, and is told, too.
    """

    def __init__(
        self, config: SamplingConfig, processor: LogitsProcessor | None = None, grammar: GrammarState | None = None
    ) -> None:
        self._config = config
        self._processor, self._grammar = processor, grammar
        self._random = np.random.default_rng(None if config.seed is None else int(config.seed))

    @property
    def is_complete(self) -> bool:
        """Whether the grammar lets nothing follow but an end."""
        return self._grammar is not None and self._grammar.is_complete

    def sample(self, logits: NDArray[Any]) -> int:
        """One token id from ``logits: [vocab]`` of any float type; greedy takes the lowest index among equal maxima.

        Raises:
            BackendError: logits of the wrong shape, or holding NaN or infinity.
            RequestError: the processor and the grammar leave no token to choose, or the grammar met a limit.
        """
        # Processed in float32 as transformers does, so that the same scores tie.
        scores = np.asarray(logits)
        scores = scores if scores.dtype == np.float64 else scores.astype(np.float32)
        if scores.ndim != 1 or scores.size == 0:
            raise BackendError(
                f"the engine returned logits of shape {list(scores.shape)}, not [vocab]; export the bundle again"
            )
        if not np.isfinite(scores).all():
            bad = int(np.count_nonzero(~np.isfinite(scores)))
            raise BackendError(
                f"the engine returned NaN or infinity in {bad} of {scores.size} logits; export in a wider type "
                "(--dtype bf16 or fp32), and if that does not help, look for NaN in the weights"
            )
        if self._processor is not None:
            scores = self._processor(scores)
            _check_processed(scores)
        if self._grammar is not None:
            scores = np.where(self._grammar.allowed, scores, -np.inf)
            _check_allowed(scores)
        token = self._choose(scores)
        if self._processor is not None:
            self._processor.append(token)
        if self._grammar is not None:
            self._grammar.append(token)
        return token

    def _choose(self, scores: NDArray[Any]) -> int:
        if self._config.temperature == 0:
            return int(np.argmax(scores))
        probabilities = softmax(filter_scores(scores.astype(np.float64), self._config))
        cumulative = np.cumsum(probabilities)
        # side="right": a token of probability 0 repeats its left neighbour's sum and is never the first one above.
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def _check_processed(scores: NDArray[Any]) -> None:
    """Raises RequestError where exclusions left nothing, or penalties and biases left no order."""
    best = scores.max()
    if best == -np.inf:
        raise RequestError(
            "the generation settings exclude every token; ease bad_words_ids, suppress_tokens, no_repeat_ngram_size, "
            "min_new_tokens or the biases of -inf"
        )
    if not np.isfinite(best):
        raise RequestError("repetition_penalty or a bias makes scores too large for float32; use a more moderate one")


def _check_allowed(scores: NDArray[Any]) -> None:
    if scores.max() == -np.inf:
        raise RequestError(
            "the generation settings exclude every token that the grammar of the answer allows; ease bad_words_ids, "
            "suppress_tokens, no_repeat_ngram_size, min_new_tokens or the biases of -inf"
        )


def filter_scores(scores: NDArray[np.float64], config: SamplingConfig) -> NDArray[np.float64]:
    """Temperature, top-k, top-p, min-p in the order of transformers' logits warpers: [vocab] → [vocab], -inf where excluded.

    The result is shifted by a constant, which no probability depends on.
    """
    # The maximum is subtracted before the division: a tiny temperature must not overflow.
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / config.temperature
    if 0 < config.top_k < scores.size:
        kth_largest = np.partition(scores, -config.top_k)[-config.top_k]
        scores = np.where(scores < kth_largest, -np.inf, scores)
    if config.top_p < 1:
        left = np.flatnonzero(scores > -np.inf)  # of a large vocabulary, top-k leaves little to sort
        ascending = left[np.argsort(scores[left], kind="stable")]
        excluded = np.cumsum(softmax(scores[ascending])) <= 1 - config.top_p
        excluded[-1] = False
        scores[ascending[excluded]] = -np.inf
    if config.min_p > 0:
        probabilities = softmax(scores)
        scores = np.where(probabilities < config.min_p * probabilities.max(), -np.inf, scores)
    return scores


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[vocab] → [vocab], summing to 1."""
    weights = np.exp(scores - scores.max())
    total: NDArray[np.float64] = weights / weights.sum()
    return total
