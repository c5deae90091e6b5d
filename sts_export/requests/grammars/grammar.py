"""What an answer has to be, as a request says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sts_export.errors import RequestError, about
from sts_export.requests.wording import short

MOST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Grammar:
    """Made by :meth:`json_schema`, :meth:`json_object` or :meth:`regex`; compiled when a request is prepared.

    Args:
        kind: what ``text`` is.
        text: a JSON Schema as JSON, or a regular expression.

    Raises:
        RequestError: more than ``MOST_BYTES`` of UTF-8, or no text.
    """

    kind: Literal["json_schema", "regex"]
    text: str

    @about("grammar")
    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "regex") or not isinstance(self.text, str):
            raise RequestError(f"a grammar is text of kind json_schema or regex, not {short(self.text)} of {short(self.kind)}")
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError:
            raise RequestError("a grammar has characters that are no text (lone surrogates); send valid UTF-8") from None
        if size > MOST_BYTES:
            raise RequestError(f"a grammar of {size} bytes is too large; {MOST_BYTES} are accepted")

    @classmethod
    @about("grammar")
    def json_schema(cls, schema: Mapping[str, Any]) -> Grammar:
        """JSON that is valid by a schema (draft 2020-12).  Properties come in the schema's order.

        Raises:
            RequestError: not a JSON object, or too large.  What the schema says is checked when a request is prepared.
        """
        if not isinstance(schema, Mapping):
            raise RequestError(f"a JSON schema is an object, not {short(schema)}; {{}} allows any JSON")
        try:
            text = json.dumps(dict(schema), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"a JSON schema is JSON, and this is none ({short(str(error))}); correct it") from None
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole, in the syntax of Rust's regex crate, without look-around.

        Raises:
            RequestError: no text, or too much of it.
        """
        return cls("regex", pattern)
