"""Many clients, clients that leave, clients that do not read: answers stay right and slots come back."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from sts_export import Pipeline
from sts_export.serving.settings import Settings
from tests.support.mixed_requests import REQUESTS, Opened, alone
from tests.support.scheduling.gates import PATIENCE, Gate, until
from tests.support.scheduling.served import MODEL, Served, Start, chat

LONG: dict[str, Any] = {"model": MODEL, "messages": chat("Where?"), "extra_body": {"ignore_eos": True}}


def ask_long(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(**LONG)


def is_idle(served: Served) -> bool:
    load = served.service.load
    return (load.running, load.waiting) == (0, 0)


@pytest.mark.parametrize("clients", [2, 8])
def test_answers_under_load_are_those_alone(start: Start, opened: Opened, clients: int) -> None:
    """Mixed requests, every fourth one given up in mid-answer; a wrong or mixed-up answer would show."""
    vlm = opened("llava")
    wanted = [result.text for result in alone(vlm)]
    served = start(vlm, slots=3)
    client = served.client()

    def ask(number: int) -> None:
        index = (number * 5) % len(REQUESTS)
        messages: Any = chat(*REQUESTS[index])
        if number % 4 == 3:
            with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
                next(iter(stream))
        elif number % 2:
            stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted[index]
        else:
            found = client.chat.completions.create(model=MODEL, messages=messages)
            assert found.choices[0].message.content == wanted[index]

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(ask, number) for number in range(12 * clients)]:
            future.result()
    until(lambda: is_idle(served))


def one_runs_one_waits(served: Served, pool: ThreadPoolExecutor) -> tuple[Future[Any], Future[Any]]:
    one = pool.submit(ask_long, served.client())
    until(lambda: served.service.load.running == 1)
    two = pool.submit(ask_long, served.client())
    until(lambda: served.service.load.waiting == 1)
    return one, two


def test_a_full_queue(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    vlm, gate = gated
    served = start(vlm, slots=1, most_waiting=1)
    with ThreadPoolExecutor(2) as pool:
        one, two = one_runs_one_waits(served, pool)
        with pytest.raises(openai.RateLimitError, match="waiting already") as caught:
            served.client().chat.completions.create(**LONG)
        assert caught.value.response.headers["retry-after"] == "1" and caught.value.code == "overloaded"
        assert served.metric("sts_num_requests_running") == served.metric("sts_num_requests_waiting") == 1
        assert served.metric("sts_kv_cache_usage_perc") == 1
        gate.open()
        assert one.result().choices[0].message.content == two.result().choices[0].message.content
    assert served.metric("sts_requests_rejected_total") == 1


def test_too_long_in_the_queue(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    vlm, gate = gated
    served = start(vlm, slots=1, longest_wait=0.5)
    with ThreadPoolExecutor(2) as pool:
        one, two = one_runs_one_waits(served, pool)
        threading.Event().wait(0.6)
        gate.open()
        with pytest.raises(openai.RateLimitError, match="no slot was free"):
            two.result()
        assert one.result().choices
    assert served.metric("sts_requests_rejected_total") == 1
    assert served.metric("sts_requests_failed_total") == 0


def test_admission_counts_what_is_still_being_sent(start: Start) -> None:
    """A body that never ends takes a place, and no more than that."""
    served = start(settings=Settings(MODEL, most_admitted=1))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        until(lambda: _status(served) == 429)
    until(lambda: _status(served) == 200)


def _status(served: Served) -> int:
    body = {"model": MODEL, "messages": chat("Where?"), "max_tokens": 1}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).status_code


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves(start: Start, gated: tuple[Pipeline, Gate], streamed: bool) -> None:
    """Its slot is the next one's, whether it was running or waiting."""
    vlm, gate = gated
    served = start(vlm, slots=1)
    with _raw(served, stream=streamed) as running:
        until(lambda: served.service.load.running == 1)
        with _raw(served, stream=streamed):
            until(lambda: served.service.load.waiting == 1)
        until(lambda: served.service.load.waiting == 0)
        assert running.fileno() >= 0

    def is_given_up() -> bool:
        gate.let(1)
        return is_idle(served)

    until(is_given_up)
    assert served.metric("sts_requests_cancelled_total") == 2
    gate.open()
    assert served.client().chat.completions.create(**LONG).choices


def _raw(served: Served, **fields: Any) -> socket.socket:
    """A client that sent its request and reads nothing."""
    host, port = served.url.removeprefix("http://").split(":")
    content = json.dumps({"model": MODEL, "messages": chat("Where?"), "ignore_eos": True, **fields}).encode()
    sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    sock.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    return sock


def test_a_client_that_does_not_read(start: Start, opened: Opened) -> None:
    """Its answer ends all the same, and others are served."""
    served = start(opened("llava"), slots=1)
    with _raw(served, stream=True):
        until(lambda: served.metric("sts_request_success_total") == 1)
        assert served.client().chat.completions.create(**LONG).choices


def test_one_prefill_delays_a_running_answer(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    """Of several requests that come at once, one is prefilled between two steps."""
    vlm, gate = gated
    served = start(vlm, slots=3)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask_long, served.client())
        until(lambda: served.service.load.running == 1)
        others = [pool.submit(ask_long, served.client()) for _ in range(2)]
        until(lambda: served.service.load.waiting == 2)
        gate.open()
        for future in (first, *others):
            future.result()
    assert "prefill prefill" not in " ".join(gate.calls) and gate.calls.count("prefill") == 3


def test_an_engine_that_fails(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    from sts_export.errors import BackendError

    vlm, gate = gated
    served = start(vlm, slots=1)
    gate.error = BackendError("the engine ran out of memory; try again")
    gate.open()
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        served.client().chat.completions.create(**LONG)
    chunks = httpx.post(
        f"{served.url}/v1/chat/completions", json={**LONG, "extra_body": None, "ignore_eos": True, "stream": True}
    )
    assert json.loads(chunks.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "[DONE]" not in chunks.text
    gate.error = None
    assert served.client().chat.completions.create(**LONG).choices
    assert served.metric("sts_requests_failed_total") == 2


class Panic(BaseException):
    """As those of extensions in Rust: no Exception."""


@pytest.mark.parametrize("error", [ZeroDivisionError("a mistake"), Panic("a mistake")])
def test_a_scheduler_that_fails(start: Start, gated: tuple[Pipeline, Gate], error: Any) -> None:
    """Whoever watches the server learns that it has to be started again; clients are not told to come again for ever."""
    vlm, gate = gated
    served = start(vlm, slots=1)
    gate.error = error
    gate.open()
    for status in (500, 503):
        with pytest.raises(openai.InternalServerError) as caught:
            served.client().chat.completions.create(**LONG)
        assert caught.value.status_code == status and caught.value.code == "engine_failed"
    for path in ("/health", "/health/ready"):
        assert httpx.get(served.url + path, timeout=PATIENCE).status_code == 503
    assert served.metric("sts_requests_rejected_total") == 0
