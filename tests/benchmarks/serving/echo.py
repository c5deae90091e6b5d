"""The peer's server with a model that needs no OpenVINO and answers what it is asked."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.serving.openvino.engine import run
from benchmarks.serving.openvino.front import Front, http_server
from benchmarks.serving.openvino.messages import Ask

Serve = Callable[["Echo"], str]


class Spoken:
    """A request that is answered with the bytes of its last message, again and again; a byte is a token."""

    reason: str | None = None
    ended = "length"

    def __init__(self, ask: Ask) -> None:
        self.prompt_tokens = len(ask.history[-1]["content"])
        self.ask = ask
        self.cancelled = threading.Event()
        self._text = ask.history[-1]["content"].encode()
        self._made = self._told = 0

    def step(self) -> None:
        if not self.cancelled.is_set() and self._made < self.ask.tokens:
            self._made += 1

    def read(self) -> list[int]:
        new = [self._text[place % len(self._text)] for place in range(self._told, self._made)]
        self._told = self._made
        self.reason = self.ended if self._made == self.ask.tokens else None
        return new

    def cancel(self) -> None:
        self.cancelled.set()


class Echo:
    """A model that repeats what it is asked; ``gate`` is entered before every step."""

    def __init__(self, gate: Callable[[], object] = lambda: None) -> None:
        self.requests: list[Spoken] = []
        self.most_together = 0
        self._gate = gate

    def add(self, ask: Ask) -> Spoken:
        if ask.history[-1]["content"] == "refuse":
            raise RuntimeError("too long")
        self.requests.append(Spoken(ask))
        return self.requests[-1]

    def step(self) -> None:
        self._gate()
        self.most_together = max(self.most_together, sum(request.reason is None for request in self.requests))
        for request in self.requests:
            request.step()

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


@contextmanager
def echoing(model: Echo) -> Iterator[str]:
    front, engine = multiprocessing.Pipe()
    threading.Thread(target=run, args=(engine, model), daemon=True).start()
    server = http_server(Front(front), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
