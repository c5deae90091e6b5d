"""A request in the scheduler, as a coroutine sees it."""

from __future__ import annotations

import asyncio

from sts_export.generation.scheduling.answers import Event, Failed, Finished, Piece
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.request import Request
from sts_export.serving.metrics import Metrics
from sts_export.serving.problems import DRAINING, ProblemError, problem_of


class Running:
    """Events of a submitted request.

    Args:
        arrived: time.perf_counter() when the request's head came.

    ``tokens`` are those that the newest piece of text came with.

    Raises:
        BusyError: the scheduler takes no more.
    """

    def __init__(self, scheduler: Scheduler, request: Request, metrics: Metrics, arrived: float) -> None:
        loop, watch = asyncio.get_running_loop(), metrics.watch(arrived, request.started)
        # Not through self: a circle would keep the request's pictures until the collector comes, and it seldom does.
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._tokens = tokens = [0]

        def deliver(event: Event) -> None:
            watch(event)
            if isinstance(event, Piece):
                tokens[0] = event.tokens
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._events = events

        self._scheduler = scheduler
        self._answer = scheduler.submit(request, deliver)

    @property
    def tokens(self) -> int:
        return self._tokens[0]

    def cancel(self) -> None:
        """Give the answer up; nothing happens where it is over."""
        self._scheduler.cancel(self._answer)

    async def next(self) -> Piece | Finished:
        """Raises ProblemError: the request failed or was given up."""
        event = await self._events.get()
        if isinstance(event, Failed):
            raise ProblemError(problem_of(event.error))
        if not isinstance(event, (Piece, Finished)):
            raise ProblemError(DRAINING)
        return event

    async def finished(self) -> Finished:
        """The end; raises as :meth:`next`."""
        while not isinstance(event := await self.next(), Finished):
            pass
        return event
