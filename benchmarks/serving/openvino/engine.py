"""The process that computes: requests join and leave between the steps of one pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from benchmarks.serving.openvino.messages import Ask, Cancel, End, Event, Failure, Piece

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Request(Protocol):
    """One that a model answers."""

    reason: str | None

    @property
    def prompt_tokens(self) -> int:
        """Those of the pictures are among them."""

    def read(self) -> Sequence[int]:
        """Tokens since the last call; sets ``reason`` once there will be no more."""

    def cancel(self) -> None:
        """Stop generating."""


class Model(Protocol):
    """What can be batched."""

    def add(self, ask: Ask) -> Request:
        """Take a request in."""

    def step(self) -> None:
        """Compute the next tokens of all requests."""

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids`` without special tokens."""


class _Running:
    """An answer so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._ids: list[int] = []
        self._told = ""

    def events(self, number: int, decode: Callable[[list[int]], str]) -> list[Event]:
        """What a step brought.  Text that ends within a character waits for the rest of it."""
        new = self.request.read()
        self._ids += new
        ended = self.request.reason is not None
        events: list[Event] = []
        if new or ended:
            text = decode(self._ids)
            if len(text) > len(self._told) and (ended or not text.endswith(_REPLACEMENT)):
                events.append(Piece(number, text[len(self._told) :]))
                self._told = text
        if self.request.reason is not None:
            events.append(End(number, self.request.reason, self.request.prompt_tokens, len(self._ids)))
        return events


def run(connection: Connection, model: Model) -> None:
    """Answer until the other side is gone.

    One request is taken in before each step, so that those that run are held up by one vision encoder at a time.  All calls
    come from this one thread: ``add_request`` and ``step`` of GenAI 2026.4 keep Python's lock, so that threads gain nothing,
    and steps would hold up whatever speaks HTTP in the same process.
    """
    running: dict[int, _Running] = {}
    waiting: list[Ask] = []
    try:
        while True:
            while connection.poll(None if not running and not waiting else 0):
                message: Ask | Cancel = connection.recv()
                if isinstance(message, Ask):
                    waiting.append(message)
                    continue
                waiting = [ask for ask in waiting if ask.number != message.number]
                if (given_up := running.pop(message.number, None)) is not None:
                    given_up.request.cancel()
            if waiting:
                ask = waiting.pop(0)
                try:
                    running[ask.number] = _Running(model.add(ask))
                except (RuntimeError, ValueError) as error:
                    connection.send(Failure(ask.number, str(error)))
            if not running:
                continue
            model.step()
            for number, answer in list(running.items()):
                for event in answer.events(number, model.decode):
                    connection.send(event)
                    if isinstance(event, End):
                        del running[number]
    except (EOFError, BrokenPipeError):
        return


def start(connection: Connection, folder: Path, slots: int, batched_tokens: int, reuse: bool) -> None:
    """The whole process: says None when it is ready, then :func:`run`.  OpenVINO is loaded here alone."""
    from benchmarks.serving.openvino.genai import GenAi

    model = GenAi(folder, slots=slots, batched_tokens=batched_tokens, reuse=reuse)
    connection.send(None)
    run(connection, model)
