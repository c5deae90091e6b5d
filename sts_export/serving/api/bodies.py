"""The body of a request: read within a limit, decoded and checked."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from sts_export.serving.api.protocol import Generated
from sts_export.serving.problems import Problem, ProblemError, problem_of_body

Body = TypeVar("Body", bound=Generated)
_READ_ON = 8  # times the limit: a client that is still sending would not read why it was refused


async def read_body(request: Request, kind: type[Body], most_bytes: int) -> Body:
    """Raises ProblemError: too large, of another type than JSON, malformed, or with fields that are wrong or unknown."""
    content = await _content(request, most_bytes)
    # Browsers ask before they send this type to another site: no foreign page can use a server on this machine.
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ProblemError(Problem(415, "the body has to be JSON; send it with Content-Type: application/json"))
    try:
        given: Any = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ProblemError(Problem(400, "the body is not readable JSON; correct it", code="invalid_json")) from None
    if not isinstance(given, dict):
        raise ProblemError(Problem(400, "the body has to be a JSON object; send one", code="invalid_json"))
    try:
        # In OpenAI's API null is what a field has that is not given.
        return kind.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ProblemError(problem_of_body(error)) from None


async def _content(request: Request, most_bytes: int) -> bytes:
    too_large = ProblemError(Problem(413, f"the body is larger than {most_bytes >> 20} MiB; send smaller pictures"))
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and len(said) < 20 and int(said) > most_bytes * _READ_ON:
        raise too_large
    chunks, length = [], 0
    async for chunk in request.stream():
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


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
