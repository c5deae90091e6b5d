"""Log-probabilities in OpenAI's forms: that of chats, and that of plain completions."""

from __future__ import annotations

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

    def chat(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """``choices[].logprobs`` of chat completions, of the next tokens."""
        return {"content": [self._chat_token(one) for one in found], "refusal": None}

    def text(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """``choices[].logprobs`` of plain completions, of the next tokens; offsets count characters."""
        texts, offsets, likeliest = [], [], []
        for one in found:
            texts.append(self._text(one.token_id))
            offsets.append(self._offset)
            likeliest.append({self._text(token): logprob for token, logprob in one.top})
            self._offset += len(texts[-1])
            self._is_first = False
        logprobs = [one.logprob for one in found]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": likeliest, "text_offset": offsets}

    def _chat_token(self, one: TokenLogprobs) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in one.top]
        entry = {**self._entry(one.token_id, one.logprob), "top_logprobs": top}
        self._is_first = False
        return entry

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        found = self._tokens.text_of(token, first=self._is_first)
        return {"token": found.text, "bytes": list(found.bytes), "logprob": logprob}

    def _text(self, token: int) -> str:
        return self._tokens.text_of(token, first=self._is_first).text
