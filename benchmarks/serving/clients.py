"""Clients that ask one question after another for a while, and what they saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import httpx

from benchmarks.serving.questions import Question
from benchmarks.serving.streams import HTTP, Ask, Transport


@dataclass
class Seen:
    """What clients saw: first tokens and gaps between pieces in seconds; answers by how they ended.

    ``tokens`` are those of complete answers, right or wrong, and of given up ones the share that came.  ``cpu`` is the
    processor's time, in seconds, that the clients themselves took.
    """

    right: int = 0
    wrong: int = 0
    cancelled: int = 0
    failed: list[str] = field(default_factory=list)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0

    def add(self, other: Seen) -> None:
        """Both together; the longer time."""
        for name in ("right", "wrong", "cancelled", "tokens", "failed", "first", "gaps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)


def crowd(
    address: str,
    questions: Sequence[Question],
    clients: int,
    *,
    seconds: float = 0.0,
    each: int = 0,
    cancel: int = 0,
    transport: Transport = HTTP,
) -> Seen:
    """So many clients at once, for so many seconds or questions each; every ``cancel``-th answer is given up half-way.

    Half-way is by the pieces that the answer has, at the first one at the latest: a short text before many end tokens is given
    up, too.
    """
    all_seen = [Seen() for _ in range(clients)]
    threads = [
        threading.Thread(target=_client, args=(address, questions, number, seconds, each, cancel, transport, all_seen[number]))
        for number in range(clients)
    ]
    started, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Seen()
    for seen in all_seen:
        total.add(seen)
    total.seconds, total.cpu = time.perf_counter() - started, time.process_time() - cpu
    return total


def _client(
    address: str,
    questions: Sequence[Question],
    number: int,
    seconds: float,
    each: int,
    cancel: int,
    transport: Transport,
    seen: Seen,
) -> None:
    end = time.perf_counter() + seconds
    asked = number * 7  # clients begin at different questions
    with transport.connect(address) as ask:
        while time.perf_counter() < end or (asked - number * 7) < each:
            question, given_up = questions[asked % len(questions)], bool(cancel) and asked % cancel == cancel - 1
            asked += 1
            try:
                _ask(ask, question, given_up, seen)
            except (httpx.HTTPError, KeyError, ValueError) as error:
                seen.failed.append(f"{type(error).__name__}: {error}")


def _ask(ask: Ask, question: Question, given_up: bool, seen: Seen) -> None:
    before = time.perf_counter()
    pieces: list[str] = []
    reason = None
    with closing(ask(question.body)) as answer:
        for told in answer:
            reason = told.reason or reason
            if not told.text:
                continue
            now = time.perf_counter()
            (seen.gaps if pieces else seen.first).append(now - before)
            before = now
            pieces.append(told.text)
            if given_up and len(pieces) >= max(1, question.pieces // 2):
                seen.cancelled += 1
                seen.tokens += question.tokens * len(pieces) // max(question.pieces, len(pieces))
                return
    if reason != "length":
        raise ValueError(f"an answer of {question.tokens} tokens ended with {reason!r}")
    seen.tokens += question.tokens
    if "".join(pieces) == question.answer:
        seen.right += 1
    else:
        seen.wrong += 1
