"""Bodies that stop coming, and what of a body is said again."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

import httpx
import openai
import pytest

from sts_export.serving.settings import Settings
from tests.support.scheduling.gates import PATIENCE, until
from tests.support.scheduling.served import MODEL, Served, Start

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Where?"}]}
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def begun(served: Served) -> socket.socket:
    """A request of which the rest of the body is missing."""
    host, port = served.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
    sock.sendall(_HEAD + b"Content-Length: 99\r\n\r\n{")
    return sock


def responses(served: Served, status: int) -> float:
    return served.metric("sts_http_responses_total", route="/v1/chat/completions", status=str(status))


def test_a_client_that_leaves_while_it_sends(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """That is no failure of the server."""
    served = start()
    with caplog.at_level(logging.INFO, "sts_export.serving"):
        begun(served).close()
        until(lambda: responses(served, 499) == 1)
    assert responses(served, 500) == 0
    assert all(record.levelno == logging.INFO for record in caplog.records if record.name.startswith("sts_export"))


def test_a_client_that_sends_no_more(start: Start) -> None:
    """It is told so, and others get its place."""
    served = start(settings=Settings(MODEL, most_admitted=1, most_silence=0.05))
    with begun(served) as sock, sock.makefile("rb") as answer:
        received = answer.read()  # until the server closes the connection
    assert received.startswith(b"HTTP/1.1 408 ") and b"did not come in time" in received
    assert served.client().chat.completions.create(**ASKED, max_tokens=1).choices


@pytest.mark.parametrize(
    "change",
    [
        {"a" * 100_000: 1},
        {"logit_bias": {"a" * 100_000: "b"}},
        {"messages": [{"role": "user", "content": [{"type": "a\nb" + "c" * 100_000}]}]},
        {"response_format": {"type": "a\nb" + "c" * 100_000}},
    ],
)
def test_lines_about_what_clients_made_up_are_short(served: Served, change: dict[str, Any]) -> None:
    """They stand in the log, too."""
    response = httpx.post(f"{served.url}/v1/chat/completions", json={**ASKED, **change}, timeout=PATIENCE)
    error = response.json()["error"]
    assert response.status_code == 400 and len(response.text) < 1000 and "\n" not in error["message"]


def test_the_clients_message_of_an_answer_is_a_turn(served: Served) -> None:
    """With all of its fields that are null."""
    client = served.client()
    answer = client.chat.completions.create(**ASKED, max_tokens=3).choices[0].message
    assert "refusal" in json.loads(answer.model_dump_json(exclude_unset=True))
    messages: list[Any] = [*ASKED["messages"], answer, {"role": "user", "content": "Why?"}]
    assert client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1).choices
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.refusal"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "assistant", "content": "a", "refusal": "b"}])


def test_usage_is_null_in_all_chunks_but_the_last(served: Served) -> None:
    """And in none where it is not asked for."""
    for options in ({"include_usage": True}, {"include_usage": None}):
        body = {**ASKED, "max_tokens": 3, "stream": True, "stream_options": options}
        text = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).text
        *lines, done = text.strip().split("\n\n")
        assert done == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        if options["include_usage"]:
            assert chunks.pop()["usage"]["completion_tokens"] == 3
            assert all(chunk["usage"] is None for chunk in chunks)
        else:
            assert all("usage" not in chunk for chunk in chunks)
