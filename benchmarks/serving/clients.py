"""Clients that ask one question after another for a while, and what they saw."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.serving.questions import Question

_PATIENCE = 600.0


@dataclass
class Seen:
    """What clients saw: first tokens and gaps between pieces in seconds; answers by how they ended."""

    right: int = 0
    wrong: int = 0
    cancelled: int = 0
    failed: list[str] = field(default_factory=list)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Seen) -> None:
        """Both together; the longer time."""
        for name in ("right", "wrong", "cancelled", "tokens", "failed", "first", "gaps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)


def crowd(
    address: str, questions: Sequence[Question], clients: int, *, seconds: float = 0.0, each: int = 0, cancel: int = 0
) -> Seen:
    """So many clients at once, for so many seconds or questions each; every ``cancel``-th answer is given up half-way."""
    all_seen = [Seen() for _ in range(clients)]
    threads = [
        threading.Thread(target=_client, args=(address, questions, number, seconds, each, cancel, all_seen[number]))
        for number in range(clients)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Seen()
    for seen in all_seen:
        total.add(seen)
    total.seconds = time.perf_counter() - started
    return total


def _client(
    address: str, questions: Sequence[Question], number: int, seconds: float, each: int, cancel: int, seen: Seen
) -> None:
    end = time.perf_counter() + seconds
    asked = number * 7  # clients begin at different questions
    with httpx.Client(timeout=_PATIENCE) as client:
        while time.perf_counter() < end or (asked - number * 7) < each:
            question, given_up = questions[asked % len(questions)], bool(cancel) and asked % cancel == cancel - 1
            asked += 1
            try:
                _ask(client, address, question, given_up, seen)
            except (httpx.HTTPError, KeyError, ValueError) as error:
                seen.failed.append(f"{type(error).__name__}: {error}")


def _ask(client: httpx.Client, address: str, question: Question, given_up: bool, seen: Seen) -> None:
    started = before = time.perf_counter()
    pieces: list[str] = []
    with client.stream("POST", f"{address}/v1/chat/completions", json=question.body) as response:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}: {response.read()[:200]!r}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            piece = chunk["choices"][0]["delta"].get("content")
            if not piece:
                continue
            now = time.perf_counter()
            (seen.gaps if pieces else seen.first).append(now - before)
            before = now
            pieces.append(piece)
            if given_up and len(pieces) * 2 >= question.tokens:
                seen.cancelled += 1
                seen.tokens += len(pieces)
                return
    if "".join(pieces) == question.answer:
        seen.right += 1
        seen.tokens += question.tokens
    else:
        seen.wrong += 1
    assert started <= before
