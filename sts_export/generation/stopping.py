"""Turn generated tokens into text as they come, and stop at stop strings.

A token's text depends on its neighbours: a UTF-8 character may span tokens, and SentencePiece tokenizers drop the leading
space of whatever they decode.  So, as vLLM and text-generation-inference do, the tokens since one step *before* the
unprinted ones are decoded twice, with and without the new tokens, and the difference is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sts_export.errors import RequestError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """What :class:`TextStream` needs of a tokenizer."""

    @property
    def byte_token_ids(self) -> frozenset[int]:
        """Ids of the byte-fallback tokens ``<0x00>`` to ``<0xFF>``; empty where the tokenizer has none."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""


class TextStream:
    """Incremental decoding: the pieces joined are ``decode(all ids)`` cut before the first stop string.

    The first stop string is the one that is complete first; of several complete at the same character, the longest.

    Args:
        tokenizer: decodes without special tokens.
        stop: strings that end the text and are not part of it.

    Raises:
        RequestError: a stop string is empty or not a string.
    """

    def __init__(self, tokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        for text in stops:
            if not isinstance(text, str) or not text:
                raise RequestError(f"a stop string must be non-empty text, not {text!r}; leave it out", field="stop")
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._context = 0  # first token decoded again, so that the unprinted ones have a left neighbour
        self._printed = 0  # tokens whose text has been taken over for good
        self._known = ""  # text of the tokens from _context to _printed
        self._pending = ""  # text of the tokens after them; what follows may still change it
        self._in_bytes = False  # the last text came from byte tokens
        self._held = ""  # final, but perhaps the beginning of a stop string
        self._text = ""
        self._stopped = False

    @property
    def text(self) -> str:
        """All text returned so far."""
        return self._text

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; later tokens are ignored."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Add one generated token and return the text that is now certain; empty after a stop string."""
        if self._stopped:
            return ""
        self._ids.append(int(token_id))
        before = self._pending
        self._pending = self._tokenizer.decode(self._ids[self._context :])[len(self._known) :]
        if token_id in self._tokenizer.byte_token_ids:
            self._in_bytes = True
        elif self._pending != before:  # a special token has no text and does not end a run of bytes
            self._in_bytes = False
        # A byte more can turn the whole run of byte tokens into replacement characters, or those into a letter.
        if not self._pending or self._in_bytes or self._pending.endswith(_REPLACEMENT):
            return ""
        return self._accept_pending()

    def finish(self) -> str:
        """Return everything held back: no more tokens will come."""
        if self._stopped:
            return ""
        piece = self._accept_pending()
        return piece if self._stopped else piece + self._emit(len(self._held))

    def _accept_pending(self) -> str:
        """Take over the decoded text; return what cannot belong to a stop string."""
        if not self._pending:
            return ""
        self._held += self._pending
        self._pending = ""
        self._context, self._printed = self._printed, len(self._ids)
        self._known = self._tokenizer.decode(self._ids[self._context :])
        start = _first_stop(self._held, self._stops)
        if start is None:
            return self._emit(len(self._held) - _possible_start(self._held, self._stops))
        self._stopped = True
        return self._emit(start)

    def _emit(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self._text += piece
        return piece


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first; None without one."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return min(found)[1] if found else None


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which a stop string begins."""
    longest = max((len(stop) for stop in stops), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
