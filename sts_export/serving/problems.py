"""What went wrong, as OpenAI's error object and its status."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sts_export.errors import BackendError, BusyError, RequestError, StsExportError

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_MOST_SHOWN, _MOST_TEXT = 80, 1000  # characters of a field's name, of a line


@dataclass(frozen=True)
class Problem:
    """An answer that is none.

    Args:
        status: of HTTP.
        param: field of the body that it is about.
        code: for programs.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


DRAINING = Problem(503, "the server is shutting down; send the request elsewhere or later", code="draining")

LOADING = Problem(503, "the model is being loaded; send the request again later", code="loading")

BROKEN = Problem(503, "the engine has failed; its server has to be started again", code="engine_failed")

GONE = Problem(499, "the client went away before its answer")  # nginx's status; nobody reads it

SILENT = Problem(408, "the rest of the body did not come in time; send the request again")


class ProblemError(Exception):
    """Raised where a request is answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: StsExportError, name_of: Callable[[str], str | None] | None = None) -> Problem:
    """Of what the package raises.

    Args:
        name_of: name of an error's field in the body; None where it is no field of it.
    """
    if isinstance(error, BusyError):
        return Problem(429, _line(error), code="overloaded")
    if isinstance(error, RequestError):
        line, param = _line(error), None
        if error.field is not None and name_of is not None and (param := name_of(error.field)) is not None:
            line = re.sub(rf"^{re.escape(error.field)}\b", param, line)
        return Problem(400, line, param)
    return Problem(500, _line(error), code="engine_failed" if isinstance(error, BackendError) else None)


def problem_of_body(error: ValidationError, given: Any) -> Problem:
    """What is wrong with a body, at one place.

    Args:
        given: the body.
    """
    errors = error.errors(include_url=False, include_input=False)
    # Of a union's members the one that got furthest.
    first = max(errors, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    place = _place(first["loc"], given)
    if first["type"] in ("extra_forbidden", "missing"):
        *outer, name = first["loc"]  # pydantic adds nothing here: the last one is a name
        place = ".".join(filter(None, (_place(outer, given), _shown(str(name)))))
    if first["type"] == "extra_forbidden":
        return Problem(400, f"{place} is not supported by this server; leave it out", place, "unknown_parameter")
    if first["type"] == "missing":
        return Problem(400, f"{place} is missing; give it", place, "missing_parameter")
    if first["type"] == "union_tag_invalid":  # pydantic's line has all of what was sent
        what = f"type has to be one of {first['ctx']['expected_tags']}"
    else:
        what = first["msg"][0].lower() + first["msg"][1:]
    return Problem(400, f"{place or 'the body'}: {what}; correct it", place or None, "invalid_value")


def _line(error: StsExportError) -> str:
    """What an error says, without the middle of what a client made very long, such as a number of thousands of digits."""
    text = " ".join(str(error).split())
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT // 2]} ... {text[-_MOST_TEXT // 2 :]}"


def _shown(name: str) -> str:
    return name[:_MOST_SHOWN] if name.isidentifier() else ascii(name[:_MOST_SHOWN])


def _place(location: Sequence[int | str], given: Any) -> str:
    """``messages.0.content``: without the names that pydantic adds for members of unions, which are no places of the body."""
    kept: list[str] = []
    value, is_tagged = given, False
    for part in location:
        if isinstance(value, dict) and part in value and not (part == value.get("type") and not is_tagged):
            value, is_tagged = value[part], False
            if str(part).isidentifier():  # clients make up names
                kept.append(str(part)[:_MOST_SHOWN])
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value, is_tagged = value[part], False
            kept.append(str(part))
        else:  # a member, of unions of objects the one that their type names
            is_tagged = True
    return ".".join(kept)
