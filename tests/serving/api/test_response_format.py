"""Answers that have to be JSON: whole and streamed, also where the model's weights are random."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.support.mixed_requests import SQUARE
from tests.support.scheduling.served import MODEL, chat

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


def ask(client: openai.OpenAI, format: Any, **settings: Any) -> Any:
    asked: Any = {"model": MODEL, "messages": chat("What is it?", SQUARE), "response_format": format, **settings}
    return client.chat.completions.create(**asked)


def test_a_schema(client: openai.OpenAI) -> None:
    found = ask(client, FORMAT).choices[0]
    if found.finish_reason == "stop":
        jsonschema.validate(json.loads(found.message.content), SCHEMA)
    assert found.message.content.lstrip().startswith("{")
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, FORMAT, stream=True)]
    assert "".join(pieces) == found.message.content


@pytest.mark.parametrize("seed", range(4))
def test_short_schemas_always_end(client: openai.OpenAI, seed: int) -> None:
    schema = {"enum": [1, 2, "a", True, None]}
    found = ask(client, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, temperature=2.0, seed=seed)
    assert found.choices[0].finish_reason == "stop"
    assert json.loads(found.choices[0].message.content) in schema["enum"]


def test_any_object_and_any_text(client: openai.OpenAI) -> None:
    assert ask(client, {"type": "json_object"}).choices[0].message.content.lstrip().startswith("{")
    plain = ask(client, {"type": "text"}).choices[0].message.content
    assert plain == ask(client, None).choices[0].message.content


@pytest.mark.parametrize(
    "format",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": []}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "https://example.org/schema"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["y" * 100_000]}}},
    ],
    ids=["type", "no schema", "list", "unknown", "remote", "large"],
)
def test_wrong_ones(client: openai.OpenAI, format: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, format)
    assert "\n" not in str(caught.value)


def test_not_with_ignore_eos(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="ignore_eos"):
        ask(client, FORMAT, extra_body={"ignore_eos": True})
