"""Each question asked of a server alone, before the load: how long answers are, and the answers of one that has no pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.serving.questions import Asked, Question
from benchmarks.serving.streams import HTTP, Transport


def asked_alone(
    address: str, model: str, questions: Sequence[Asked], right: Sequence[str] | None = None, transport: Transport = HTTP
) -> list[Question]:
    """One after another, which is the server's first time, too.

    Args:
        right: the answers; None: those that the server gives now.

    Raises:
        RuntimeError: an answer has not as many tokens as were asked for, or the server counts none.
        ValueError: the server refuses a question.
    """
    found = []
    with transport.connect(address) as ask:
        for number, asked in enumerate(questions):
            pieces, tokens = list[str](), None
            for told in ask(transport.body(asked, model, True)):
                pieces += [told.text] if told.text else []
                tokens = tokens if told.tokens is None else told.tokens
            if tokens != asked.tokens:
                raise RuntimeError(f"question {number} asks for {asked.tokens} tokens, and {address} made {tokens}")
            answer = "".join(pieces) if right is None else right[number]
            found.append(Question(transport.body(asked, model, False), answer, asked.tokens, len(pieces)))
    return found
