"""A streamed answer as a client reads it, over whatever the server speaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.serving.questions import Asked

PATIENCE = 600.0  # seconds for the next piece


@dataclass(frozen=True)
class Told:
    """What one message of a server brings: text, or none; why the answer ended; its tokens up to here, where it says so."""

    text: str = ""
    reason: str | None = None
    tokens: int | None = None


# Of a request's body: the messages of its answer.  Closing the generator gives the answer up.  It raises ValueError where the
# server refuses, or the answer breaks off.
Ask = Callable[[dict[str, Any]], Generator[Told]]


@dataclass(frozen=True)
class Transport:
    """How clients ask a server.

    Args:
        connect: to an address, for one client that asks one question after another.
        body: of a question to a model of that name; with True, one whose answer says how many tokens it has.
    """

    connect: Callable[[str], AbstractContextManager[Ask]]
    body: Callable[[Asked, str, bool], dict[str, Any]]


@contextmanager
def over_http(address: str) -> Iterator[Ask]:
    """OpenAI's chat completions.  The client raises httpx.HTTPError, too."""
    with httpx.Client(timeout=PATIENCE) as client:

        def ask(body: dict[str, Any]) -> Generator[Told]:
            with closing(chunks(client, address, body)) as answer:
                for chunk in answer:
                    reason = chunk["choices"][0]["finish_reason"] if chunk["choices"] else None
                    yield Told(piece(chunk), reason, (chunk.get("usage") or {}).get("completion_tokens"))

        yield ask


def chunks(client: httpx.Client, address: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
    """Closing this gives the answer up.

    Raises:
        ValueError: the server refuses, or its answer breaks off with an error.
    """
    with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}: {response.read()[:200]!r}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise ValueError(f"the answer broke off: {chunk['error']}")
            yield chunk


def piece(chunk: dict[str, Any]) -> str:
    """Text of a chunk; empty where it has none."""
    return (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""


def _chat(asked: Asked, model: str, counted: bool) -> dict[str, Any]:
    return {**asked.body(model), **({"stream_options": {"include_usage": True}} if counted else {})}


HTTP = Transport(over_http, _chat)
