"""The checkpoint's penalties, biases and exclusions, by transformers' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


def checkpoint_processors(settings: Any, prompt_tokens: int, end_tokens: Sequence[int]) -> Any:
    """What ``generate(do_sample=False)`` puts between logits and choice, in its order (``_get_logits_processor``).

    Args:
        settings: the model's GenerationConfig.
        prompt_tokens: length of the unpruned prompt.
        end_tokens: ids that end the answer; empty where they are ignored.

    Returns:
        a LogitsProcessorList: (input_ids [1, tokens] int64, scores [1, vocab] float32) -> scores.
    """
    chosen = LogitsProcessorList()
    if settings.sequence_bias:
        chosen.append(SequenceBiasLogitsProcessor(settings.sequence_bias))
    if settings.repetition_penalty not in (None, 1):
        chosen.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.bad_words_ids:
        chosen.append(NoBadWordsLogitsProcessor(settings.bad_words_ids, list(end_tokens)))
    least = settings.min_new_tokens
    if least is None:  # min_length counts the prompt, and holds only without min_new_tokens
        least = max(0, (settings.min_length or 0) - prompt_tokens)
    if least and end_tokens:
        chosen.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, least, list(end_tokens)))
    if settings.suppress_tokens:
        chosen.append(SuppressTokensLogitsProcessor(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        chosen.append(SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, prompt_tokens))
    return chosen
