"""Each question asked of a server alone, before the load: how long answers are, and the answers of one that has no pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from benchmarks.serving.questions import Asked, Question
from benchmarks.serving.streams import chunks, piece

_PATIENCE = 600.0


def asked_alone(address: str, model: str, questions: Sequence[Asked], right: Sequence[str] | None = None) -> list[Question]:
    """One after another, which is the server's first time, too.

    Args:
        right: the answers; None: those that the server gives now.

    Raises:
        RuntimeError: an answer has not as many tokens as were asked for, or the server counts none.
        ValueError: the server refuses a question.
    """
    found = []
    with httpx.Client(timeout=_PATIENCE) as client:
        for number, asked in enumerate(questions):
            body = asked.body(model)
            pieces, tokens = list[str](), None
            for chunk in chunks(client, address, {**body, "stream_options": {"include_usage": True}}):
                pieces += [text] if (text := piece(chunk)) else []
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if tokens != asked.tokens:
                raise RuntimeError(f"question {number} asks for {asked.tokens} tokens, and {address} made {tokens}")
            answer = "".join(pieces) if right is None else right[number]
            found.append(Question(body, answer, asked.tokens, len(pieces)))
    return found
