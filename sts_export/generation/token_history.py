"""The tokens of one request so far, in the forms that logits processors ask for; every form is kept up token by token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class TokenHistory:
    """Prompt and answer.

    Args:
        prompt_ids: [tokens] int64 of the unpruned prompt, image tokens included; ids outside the vocabulary are allowed.
        vocab_size: number of logits.
        ngram_size: length of the runs that :meth:`followers` knows; 0 for none.

    Attributes:
        ids: all tokens.
        generated: how many of them are new.
        seen: [vocab] bool; whether a token occurs in prompt or answer.
        counts: [vocab] int64; how often a token was generated.
    """

    def __init__(self, prompt_ids: NDArray[np.int64], vocab_size: int, ngram_size: int = 0) -> None:
        self.ids: list[int] = [] if ngram_size else prompt_ids.tolist()
        self.generated = 0
        self.seen = np.zeros(vocab_size, np.bool_)
        self.counts = np.zeros(vocab_size, np.int64)
        self._ngram_size = ngram_size
        self._followers: dict[tuple[int, ...], set[int]] = {}
        self.seen[prompt_ids[prompt_ids < vocab_size]] = True
        if ngram_size:
            for token in prompt_ids.tolist():
                self._extend(token)

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.generated += 1
        self.seen[token] = True
        self.counts[token] += 1
        self._extend(token)

    def followers(self) -> Iterable[int]:
        """Tokens that followed the last ``ngram_size - 1`` tokens wherever these occurred before."""
        if len(self.ids) + 1 < self._ngram_size or not self._ngram_size:
            return ()
        return self._followers.get(self._last(self._ngram_size - 1), ())

    def ends_with(self, prefix: tuple[int, ...]) -> bool:
        return self._last(len(prefix)) == prefix

    def _extend(self, token: int) -> None:
        if self._ngram_size and len(self.ids) + 1 >= self._ngram_size:
            self._followers.setdefault(self._last(self._ngram_size - 1), set()).add(token)
        self.ids.append(token)

    def _last(self, count: int) -> tuple[int, ...]:
        return tuple(self.ids[-count:]) if count else ()
