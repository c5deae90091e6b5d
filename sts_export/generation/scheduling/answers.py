"""A request that was submitted to a scheduler, and what its reader is told of it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass

from sts_export.errors import BusyError, StsExportError
from sts_export.generation.next_token.logprobs import TokenLogprobs
from sts_export.generation.result import GenerationResult
from sts_export.requests.request import Request


@dataclass(frozen=True)
class Piece:
    """Text that became certain; never empty.

    Args:
        tokens: generated so far.
        logprobs: of the tokens generated since the piece before, one or several: text may have been held back.  Empty where
            the request asks for none.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is complete; its request waited ``queue_ms`` for its prefill to begin.

    Tokens after those that the last piece counts brought no more text, such as an end token.  Their log-probabilities came with
    no piece: they are ``result.logprobs[tokens:]``, with ``tokens`` of the last piece, or all where there was none.
    """

    result: GenerationResult
    queue_ms: float


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no more of it."""

    error: StsExportError


@dataclass(frozen=True)
class Cancelled:
    """The reader gave the answer up after so many tokens."""

    tokens: int


Event = Piece | Finished | Failed | Cancelled


class Answer:
    """Pieces of text, then one end.

    Without ``deliver`` the answer is iterated over: it yields pieces of text and raises what the request failed with.

    Args:
        request: what is answered.
        deliver: told every event by the scheduler's thread, which it must not hold up; None: events wait here.
    """

    def __init__(self, request: Request, deliver: Callable[[Event], None] | None = None) -> None:
        self.request = request
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.deliver = self._events.put if deliver is None else deliver
        self._end: Event | None = None

    def __iter__(self) -> Iterator[str]:
        while self._end is None:
            event = self._events.get()
            if isinstance(event, Piece):
                yield event.text
            else:
                self._end = event
        self._finished()

    @property
    def result(self) -> GenerationResult:
        """Of the complete answer, for which this waits.

        Raises:
            StsExportError: the request failed.
            BusyError: it was given up.
        """
        for _ in self:
            pass
        return self._finished().result

    def _finished(self) -> Finished:
        if isinstance(self._end, Failed):
            raise copy(self._end.error)
        if not isinstance(self._end, Finished):
            raise BusyError("the request was given up before its answer was complete; send it again")
        return self._end


def tell(answer: Answer, event: Event) -> bool:
    """Whether there is still somebody to tell: a reader that fails must not hurt other requests."""
    try:
        answer.deliver(event)
    except KeyboardInterrupt:  # of the main thread, which may be the one that cancels
        raise
    except BaseException:
        return False
    return True
