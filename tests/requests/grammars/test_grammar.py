"""Grammars as requests say them: what is refused before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sts_export.errors import RequestError
from sts_export.requests.grammars.grammar import MOST_BYTES, Grammar


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_what_they_hold() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert Grammar.json_schema(schema).kind == "json_schema"
    assert list(json.loads(Grammar.json_schema(schema).text)["properties"]) == ["b", "a"]  # answers follow this order
    assert json.loads(Grammar.json_object().text) == {"type": "object"}
    assert Grammar.regex("yes|no") == Grammar("regex", "yes|no") != Grammar.regex("no|yes")
    assert len({Grammar.json_object(), Grammar.json_object()}) == 1


@pytest.mark.parametrize("schema", [None, "{}", [], True, 3])
def test_a_schema_is_an_object(schema: Any) -> None:
    with pytest.raises(RequestError, match=r"^a JSON schema is an object, not .*; \{\} allows any JSON$"):
        Grammar.json_schema(schema)


@pytest.mark.parametrize("schema", [{"const": float("nan")}, {"const": {1, 2}}, {"enum": [b"a"]}, nested(100_000)])
def test_a_schema_is_json(schema: Any) -> None:
    with pytest.raises(RequestError, match=r"^a JSON schema is JSON, and this is none \([^\n]*\); correct it$"):
        Grammar.json_schema(schema)


def test_other_texts() -> None:
    for kind, text in (("lark", "start: 1"), ("regex", None), ("regex", b"a")):
        with pytest.raises(RequestError, match="a grammar is text of kind json_schema or regex, not"):
            Grammar(kind, text)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="lone surrogates"):
        Grammar.regex("\ud800")


def test_the_size_is_limited() -> None:
    assert len(Grammar.regex("é" * (MOST_BYTES // 2)).text) == MOST_BYTES // 2
    with pytest.raises(RequestError, match=f"^a grammar of {MOST_BYTES + 2} bytes is too large; {MOST_BYTES} are accepted$"):
        Grammar.regex("é" * (MOST_BYTES // 2 + 1))
    with pytest.raises(RequestError, match="is too large"):
        Grammar.json_schema({"enum": ["a" * 100] * 1000})
