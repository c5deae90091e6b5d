"""Answers in OpenAI's forms: whole, and chunk by chunk."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from sts_export.generation.result import GenerationResult


def usage(result: GenerationResult) -> dict[str, Any]:
    """Tokens of prompt and answer.  ``visual_tokens`` is this server's own: of all pictures, after stage 1, after stage 2."""
    visual = result.visual_tokens
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.token_ids),
        "total_tokens": result.prompt_tokens + len(result.token_ids),
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
        "visual_tokens": {"total": visual.total, "stage1": visual.stage1, "stage2": visual.stage2},
    }


@dataclass(frozen=True)
class ChatForm:
    """Chat completions."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        """The complete answer."""
        message = {"role": "assistant", "content": result.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": result.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(result)}

    def first(self) -> list[dict[str, Any]]:
        """Chunks before any text."""
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk of the answer."""
        return self._chunk({"content": text}, None)

    def last(self, result: GenerationResult) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk({}, result.finish_reason)

    def used(self, result: GenerationResult) -> dict[str, Any]:
        """The chunk with the usage, which comes after all others where it is asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(result)}

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True)
class TextForm:
    """Plain completions, whose chunks have the form of the whole; methods as of :class:`ChatForm`."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        return {**self._text(result.text, result.finish_reason), "usage": usage(result)}

    def first(self) -> list[dict[str, Any]]:
        return []

    def piece(self, text: str) -> dict[str, Any]:
        return self._text(text, None)

    def last(self, result: GenerationResult) -> dict[str, Any]:
        return self._text("", result.finish_reason)

    def used(self, result: GenerationResult) -> dict[str, Any]:
        return {**self._head(), "choices": [], "usage": usage(result)}

    def _text(self, text: str, reason: str | None) -> dict[str, Any]:
        return {**self._head(), "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}


Form = ChatForm | TextForm
