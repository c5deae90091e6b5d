"""The lines of a stream, as clients read them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from sts_export.generation.scheduling.answers import Finished, Piece
from sts_export.serving.api.events import EventStream
from sts_export.serving.api.replies import TextForm
from sts_export.serving.problems import DRAINING, ProblemError


class Events:
    """What is told after the first piece."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = list(pieces)

    async def next(self) -> Piece | Finished:
        if not self._pieces:
            raise ProblemError(DRAINING)
        return Piece(self._pieces.pop(0), 2)


async def sent(first: str, *more: str) -> bytes:
    nothing: Any = None
    ends: list[Any] = []
    form, running = TextForm("m", nothing, nothing), Events(*more)
    told: dict[str, Any] = {"with_usage": False, "ended": ends.append, "leave": lambda: None}
    stream = EventStream(running, Piece(first, 1), form, **told)  # type: ignore[arg-type]
    content = b"".join([str(line).encode() async for line in stream.body_iterator])
    assert ends == [DRAINING]
    return content


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "\u0085", "a\x0b\x0c\x1c\x1eb", "\r\n\n", "\U0001f600 ä", "\ud83d"])
def test_every_event_is_one_line_to_every_client(text: str) -> None:
    content = asyncio.run(sent(text, "next"))
    lines = [line for line in httpx.Response(200, content=content).iter_lines() if line]
    assert lines == content.decode().splitlines()[::2] and all(line.startswith("data: ") for line in lines)
    *chunks, problem = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [text, "next"]
    assert problem["error"]["code"] == "draining"
