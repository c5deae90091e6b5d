"""Log-probabilities in OpenAI's forms: that of chats, and that of plain completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from sts_export.generation.next_token.logprobs import TokenLogprobs
from sts_export.requests.token_bytes import TokenBytes


class LogprobsForm:
    """Of one answer, in the order of its tokens.

    An end token is part of them: its probability is what ended the answer.

    Args:
        tokens: bytes of tokens.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._is_first, self._offset = True, 0
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def chat(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """``choices[].logprobs`` of chat completions, of the next tokens."""
        return {"content": [self._chat_token(one) for one in found], "refusal": None}

    def text(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """``choices[].logprobs`` of plain completions, of the next tokens.

        Offsets count characters of the answer's text: that of a part of a character is the character's, and a special token,
        which the text does not have, moves none.
        """
        texts, offsets, likeliest = [], [], []
        for one in found:
            texts.append(self._text(one.token_id))
            offsets.append(self._offset)
            likeliest.append(self._by_name(one))
            if not self._tokens.is_special(one.token_id):
                self._offset += len(self._characters.decode(self._tokens.of(one.token_id, first=self._is_first)))
            self._is_first = False
        logprobs = [one.logprob for one in found]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": likeliest, "text_offset": offsets}

    def _by_name(self, one: TokenLogprobs) -> dict[str, float]:
        """The likeliest first; of tokens with one name the likeliest, for a mapping has no place for more."""
        found: dict[str, float] = {}
        for token, logprob in one.top:
            found.setdefault(self._text(token), logprob)
        return found

    def _chat_token(self, one: TokenLogprobs) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in one.top]
        entry = {**self._entry(one.token_id, one.logprob), "top_logprobs": top}
        self._is_first = False
        return entry

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        found = self._tokens.text_of(token, first=self._is_first)
        return {"token": found.text, "bytes": list(found.bytes), "logprob": logprob}

    def _text(self, token: int) -> str:
        """Characters, or ``bytes:\\xe2\\x80`` where its bytes are none by themselves, as OpenAI names them."""
        found = self._tokens.of(token, first=self._is_first)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
