"""Every wrong request: its status, OpenAI's error object, the client's own exception, one line."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from sts_export.serving.settings import Settings
from tests.support.mixed_requests import SQUARE
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.served import MODEL, Served, Start, chat, data_url

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Where?"}]}


def post(served: Served, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    return httpx.post(served.url + path, timeout=PATIENCE, **({"json": body} | options))


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and "\n" not in body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize(
    "change, param",
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Where?"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content.0.image_url",
        ),
        ({"messages": chat("What?", SQUARE, detail="best")}, "messages.0.content.0.image_url.detail"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}, "messages.0.content.0.x"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.image_url"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 1}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "text", "text": 1}}, "response_format.text"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"stop": ["a", 1]}, "stop.1"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"chunks": 1}}, "stream_options.chunks"),
        ({"seed": True}, "seed"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"stop": {"a": 1}}, "stop"),
    ],
)
def test_bodies_of_a_wrong_form(served: Served, change: dict[str, Any], param: str) -> None:
    error = refused(post(served, {**ASKED, **change}), 400)
    assert error["type"] == "invalid_request_error" and error["param"] == param


@pytest.mark.parametrize(
    "change, words, param",
    [
        ({"messages": [{"role": "user", "content": ""}]}, "empty", "messages"),
        ({"messages": [{"role": "user", "content": "word " * 10_000}]}, "too long", "messages"),
        ({"messages": chat("What?", [SQUARE] * 40)}, "the prompt is too long", "messages"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"temperature": 1e999}, "JSON", None),
        ({"top_p": 7}, "top_p", "top_p"),
        ({"top_k": -4, "temperature": 1}, "top_k", "top_k"),
        ({"min_p": 2}, "min_p", "min_p"),
        ({"seed": -1}, "seed", "seed"),
        ({"max_tokens": 0}, "max_tokens must be at least 1", "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens must be at least 1", "max_completion_tokens"),
        ({"max_tokens": 10**9}, "do not fit", "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "not both", "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20", "top_logprobs"),
        ({"top_logprobs": 2}, "set logprobs", "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty"),
        ({"logit_bias": {"cat": 1}}, "token ids", "logit_bias"),
        ({"logit_bias": {"123456789": 1}}, "token", "logit_bias"),
        ({"logit_bias": {"9" * 400: 1}}, "token ids", "logit_bias"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "at most 4", "stop"),
        ({"stop": [""]}, "stop", "stop"),
        ({"budget": "9999"}, "budget", "budget"),
        ({"budget": "none"}, "number", "budget"),
        ({"budget": 0}, "budget", "budget"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
            "grammar",
            "response_format",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "response_format"),
    ],
)
def test_what_cannot_be_had(served: Served, change: dict[str, Any], words: str, param: str | None) -> None:
    """Lines have the API's names, and no options of the command line that ask for the same."""
    content = json.dumps({**ASKED, **change})
    response = post(served, None, content=content, headers={"content-type": "application/json"}, json=None)
    error = refused(response, 400)
    assert words in error["message"] and error["param"] == param
    assert not any(option in error["message"] for option in ("--budget", "--image", "--keep", "Python", "max_new_tokens"))


@pytest.mark.parametrize(
    "change, words, param",
    [
        ({"prompt": " "}, "empty", "prompt"),
        ({"prompt": "<image> What?"}, "placeholder", "prompt"),
        ({"max_tokens": 0}, "max_tokens must be", "max_tokens"),
        ({"logprobs": 21}, "logprobs must be", "logprobs"),
        ({"response_format": {"type": "text"}}, "not supported", "response_format"),
    ],
)
def test_what_cannot_be_had_of_plain_texts(served: Served, change: dict[str, Any], words: str, param: str) -> None:
    error = refused(post(served, {"model": MODEL, "prompt": "Where", **change}, "/v1/completions"), 400)
    assert words in error["message"] and error["param"] == param and "--image" not in error["message"]


@pytest.mark.parametrize(
    "url, words",
    [
        ("data:image/png;base64,aGVsbG8=", "image"),
        ("data:image/png;base64,", "image"),
        (data_url(SQUARE)[:198], "image"),
        ("data:image/png;base64,a&b", "base64"),
        ("https://example.org/cat.jpg", "picture"),
        ("file:///etc/passwd", "reads no files"),
    ],
)
def test_what_is_no_picture(served: Served, url: str, words: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    error = refused(post(served, {**ASKED, "messages": [{"role": "user", "content": content}]}), 400)
    assert words in error["message"] and error["param"] == "messages"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"\x00" * 10, b"9" * 5000],
)
def test_what_is_no_json(served: Served, content: bytes) -> None:
    response = post(served, None, content=content, headers={"content-type": "application/json"}, json=None)
    assert "JSON" in refused(response, 400)["message"]


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_types_than_json(served: Served, media: str) -> None:
    """A page of another site may send these without asking: such a request must have no effect."""
    content = json.dumps(ASKED)
    assert (
        "application/json"
        in refused(post(served, None, content=content, headers={"content-type": media}, json=None), 415)["message"]
    )


def test_addresses(served: Served) -> None:
    refused(httpx.get(served.url + "/v2/nothing"), 404)
    refused(httpx.get(served.url + "/v1/chat/completions"), 405)
    assert refused(post(served, {**ASKED, "model": "gpt-5"}), 404)["code"] == "model_not_found"
    refused(httpx.get(served.url + "/v1/models/gpt-5"), 404)
    assert httpx.get(served.url + "/health").status_code == 200
    assert httpx.get(served.url + "/health/ready").json() == {"status": "ready"}
    assert set(httpx.get(served.url + "/version").json()) == {"version"}


def test_the_clients_own_exceptions(served: Served, start: Start) -> None:
    client = served.client()
    messages: Any = ASKED["messages"]
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=messages, temperature=-1)
    with pytest.raises(openai.BadRequestError):
        list(client.chat.completions.create(model=MODEL, messages=messages, temperature=-1, stream=True))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=messages)
    locked = start(settings=Settings(MODEL, api_keys=("one", "two")))
    for key in ("wrong", "on", "onee"):
        with pytest.raises(openai.AuthenticationError):
            locked.client(api_key=key).chat.completions.create(model=MODEL, messages=messages)
        with pytest.raises(openai.AuthenticationError):
            locked.client(api_key=key).models.list()
    refused(post(locked, ASKED), 401)
    for key in ("one", "two"):
        assert locked.client(api_key=key).chat.completions.create(model=MODEL, messages=messages).choices
    assert httpx.get(locked.url + "/health").status_code == 200


def test_large_bodies(start: Start) -> None:
    """They are refused whether or not they say their length, and the client can read why."""
    served = start(settings=Settings(MODEL, most_body=1 << 20))
    headers = {"content-type": "application/json"}

    def chunks(count: int) -> Any:
        yield from (b" " * (1 << 20) for _ in range(count))

    for content in (b" " * ((1 << 20) + 1), chunks(3)):
        assert "larger than 1 MiB" in refused(post(served, None, content=content, headers=headers, json=None), 413)["message"]
    try:  # so much is not even read to its end
        response = post(served, None, content=chunks(100), headers=headers, json=None)
    except httpx.TransportError:
        pass
    else:
        refused(response, 413)
    padded = json.dumps(ASKED).encode() + b" " * (1 << 19)
    assert post(served, None, content=padded, headers=headers, json=None).status_code == 200


def test_request_ids(served: Served) -> None:
    assert post(served, ASKED, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for given in ("a b", "x" * 200, "a\tb"):
        assert post(served, ASKED, headers={"x-request-id": given}).headers["x-request-id"] != given
