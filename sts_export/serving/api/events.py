"""An answer as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sts_export.generation.scheduling.answers import Finished, Piece
from sts_export.serving.api.replies import Form
from sts_export.serving.api.running import Running
from sts_export.serving.problems import Problem, ProblemError


class EventStream(StreamingResponse):
    """Chunks of an answer, ``[DONE]`` after the last; whatever ends the response ends the answer.

    Args:
        first: what was waited for before it was certain that there is an answer.
        ended: told the end, or what the answer failed by; nothing where the client left before.
        leave: called when nothing but the stream's last line is to be sent, or nobody reads it any more; maybe twice.
    """

    def __init__(
        self,
        running: Running,
        first: Piece | Finished,
        form: Form,
        *,
        with_usage: bool,
        ended: Callable[[Finished | Problem], None],
        leave: Callable[[], None],
    ) -> None:
        self._running, self._leave = running, leave
        events = _events(running, first, form, with_usage, ended, leave)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy is to pass chunks on as they come
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()
            self._leave()


async def _events(
    running: Running,
    event: Piece | Finished,
    form: Form,
    with_usage: bool,
    ended: Callable[[Finished | Problem], None],
    leave: Callable[[], None],
) -> AsyncIterator[str]:
    usage = {"usage": None} if with_usage else {}  # of all chunks but one, as in OpenAI's API
    for chunk in form.first():
        yield _line({**chunk, **usage})
    try:
        while not isinstance(event, Finished):
            yield _line({**form.piece(event), **usage})
            event = await running.next()
    except ProblemError as error:
        ended(error.problem)
        leave()
        yield _line(error.problem.body)
        return
    ended(event)
    yield _line({**form.last(event.result), **usage})
    if with_usage:
        yield _line(form.used(event.result))
    leave()  # before the client knows that it may send its next request
    yield "data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> str:
    """In ASCII: some clients end lines at U+2028 and U+0085, too, which JSON would have as they are."""
    return f"data: {json.dumps(chunk)}\n\n"
