"""Work for a client, given up where the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import CancelScope
from fastapi import Request

from sts_export.serving.problems import GONE, ProblemError

Result = TypeVar("Result")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work gives.  A thread that waits for its turn does not start for nobody; one that runs is waited for, so that no
    more of them run than may.

    Args:
        request: whose body is read.

    Raises:
        ProblemError: the client went away before.
    """
    with CancelScope() as scope:  # and no cancelled task, which would not wait for its thread

        def leave(gone: asyncio.Task[None]) -> None:
            if not gone.cancelled():
                scope.cancel()

        gone = asyncio.create_task(_disconnected(request))
        gone.add_done_callback(leave)
        try:
            result = await work
        finally:
            gone.cancel()
    if scope.cancel_called:
        raise ProblemError(GONE)
    return result


async def _disconnected(request: Request) -> None:
    """Once the body is read, only a disconnection is left to come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
