"""The body of a request: read within a limit, decoded and checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from sts_export.serving.api.protocol import Generated
from sts_export.serving.problems import GONE, SILENT, Problem, ProblemError, problem_of_body

Body = TypeVar("Body", bound=Generated)
_READ_ON = 8  # times the limit: a client that is still sending would not read why it was refused
_MOST_VALUES = 1 << 18  # the event loop waits while they are read: some 0.1 s
_MOST_SILENCES = 10  # in all: who sends a byte a minute must not keep a place, either


async def read_body(request: Request, kind: type[Body], most_bytes: int, most_silence: float) -> Body:
    """Raises ProblemError: too large, too slow, no JSON, malformed, or with wrong or unknown fields."""
    try:
        async with asyncio.timeout(_MOST_SILENCES * most_silence):
            content = await _content(request, most_bytes, most_silence)
    except TimeoutError:
        raise ProblemError(SILENT) from None
    # Browsers ask before they send this type to another site: a page has to take over a name to use a server on this machine.
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ProblemError(Problem(415, "the body has to be JSON; send it with Content-Type: application/json"))
    _check_values(content)
    try:
        given: Any = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ProblemError(Problem(400, "the body is not readable JSON; correct it", code="invalid_json")) from None
    if not isinstance(given, dict):
        raise ProblemError(Problem(400, "the body has to be a JSON object; send one", code="invalid_json"))
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ProblemError(problem_of_body(error, given)) from None


async def _content(request: Request, most_bytes: int, most_silence: float) -> bytes:
    too_large = ProblemError(Problem(413, f"the body is larger than {most_bytes >> 20} MiB; send smaller pictures"))
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and len(said) < 20 and int(said) > most_bytes * _READ_ON:
        raise too_large
    chunks, length = [], 0
    stream = request.stream()
    while (chunk := await _next(stream, most_silence)) is not None:
        length += len(chunk)
        if length <= most_bytes:
            chunks.append(chunk)
        else:
            chunks.clear()
        if length > most_bytes * _READ_ON:
            break
    if length > most_bytes:
        raise too_large
    return b"".join(chunks)


async def _next(stream: AsyncGenerator[bytes, None], most_silence: float) -> bytes | None:
    """None after the last chunk.  A client that vanished without a word must not keep its place for ever."""
    try:
        async with asyncio.timeout(most_silence):
            return await anext(stream, None)
    except TimeoutError:
        raise ProblemError(SILENT) from None
    except ClientDisconnect:
        raise ProblemError(GONE) from None


def _check_values(content: bytes) -> None:
    """Pictures and texts are long and few; where there are more commas than this in a text, it fits into no prompt."""
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ProblemError(Problem(400, f"the body has more than {_MOST_VALUES} values or commas; send fewer"))


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
