"""Answers in OpenAI's forms: whole, and chunk by chunk."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from typing import Any

from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.answers import Piece
from sts_export.requests.request import Request
from sts_export.requests.token_bytes import TokenBytes
from sts_export.serving.api.logprobs import LogprobsForm
from sts_export.serving.page.kept import kept_pictures


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


class Form(ABC):
    """One answer.

    Args:
        model: name that the client asked for.
        request: what is answered.
        tokens: bytes of tokens, for log-probabilities.
        with_kept: whether the end tells which visual tokens were kept, and times, and the first chunk the tokens.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, request: Request, tokens: TokenBytes, *, with_kept: bool = False) -> None:
        self._model, self._request, self._with_kept = model, request, with_kept
        self._id, self._created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self._logprobs = LogprobsForm(tokens)
        self._told = 0  # tokens whose log-probabilities were told
        self._kept: tuple[list[list[int]], list[int]] | None = None

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        """The complete answer."""
        choice = {**self._said(result.text), "logprobs": self._rest(result), "finish_reason": result.finish_reason}
        return {**self._head(self.kind), "choices": [{"index": 0, **choice}], "usage": usage(result), **self._own(result)}

    @property
    def watched(self) -> Request:
        """The request, as one that tells this form which tokens were kept before its first token."""
        return replace(self._request, on_kept=self._keep) if self._with_kept else self._request

    def first(self) -> list[dict[str, Any]]:
        """Chunks before any text."""
        return []

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A chunk of the answer."""
        self._told = piece.tokens
        return self._chunk(self._added(piece.text), self._of(piece.logprobs) if piece.logprobs else None, None)

    def last(self, result: GenerationResult) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk(self._added(""), self._rest(result), result.finish_reason)

    def used(self, result: GenerationResult) -> dict[str, Any]:
        """The chunk with the usage, which comes after all others where it is asked for."""
        return {**self._head(self.chunk_kind), "choices": [], "usage": usage(result), **self._own(result)}

    @abstractmethod
    def _said(self, text: str) -> dict[str, Any]:
        """The whole text, as a part of a choice."""

    @abstractmethod
    def _added(self, text: str) -> dict[str, Any]:
        """A piece of the text, as a part of a choice."""

    @abstractmethod
    def _of(self, found: Any) -> dict[str, Any]:
        """Log-probabilities of the next tokens."""

    def _rest(self, result: GenerationResult) -> dict[str, Any] | None:
        found = None if result.logprobs is None else result.logprobs[self._told :]
        return self._of(found) if found else None

    def _keep(self, stage1: list[list[int]], stage2: list[int]) -> None:
        """Called by the engine's thread, which nothing may hold up or hurt."""
        self._kept = stage1, stage2

    def _own(self, result: GenerationResult) -> dict[str, Any]:
        """What only this server tells."""
        if not self._with_kept:
            return {}
        pictures = kept_pictures(self._request.images, result.kept_stage1, result.kept_stage2)
        return {"sts": {"timings_ms": asdict(result.timings_ms), "pictures": pictures}}

    def _chunk(self, part: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **part, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head(self.chunk_kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


class ChatForm(Form):
    """Chat completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[dict[str, Any]]:
        chunk = self._chunk({"delta": {"role": "assistant", "content": ""}}, None, None)
        if self._kept is not None:
            chunk["sts"] = {"pictures": kept_pictures(self._request.images, *self._kept)}
        return [chunk]

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _added(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _of(self, found: Any) -> dict[str, Any]:
        return self._logprobs.chat(found)


class TextForm(Form):
    """Plain completions, whose chunks have the form of the whole."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def _said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _added(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _of(self, found: Any) -> dict[str, Any]:
        return self._logprobs.text(found)
