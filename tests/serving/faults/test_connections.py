"""Clients that speak HTTP slowly, oddly, or hardly at all."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from sts_export.errors import RequestError
from sts_export.serving.settings import Settings
from tests.serving.faults.answers import ASKED, CHAT, is_refused, is_well, post
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.served import MODEL, Served, Start

CONTENT = json.dumps(ASKED).encode()
JSON = "Content-Type: application/json"


@pytest.fixture
def connect(served: Served) -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as stack:

        def connected(to: Served = served) -> socket.socket:
            host, port = to.url.removeprefix("http://").split(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE))

        yield connected


def head(*lines: str, content: bytes = CONTENT, version: str = "1.1") -> bytes:
    whole = (f"POST {CHAT} HTTP/{version}", "Host: x", f"Content-Length: {len(content)}", *lines)
    return "\r\n".join([*whole, "", ""]).encode()


def read(sock: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    """What comes until there is enough of it; to the end where there never is."""
    found = b""
    while not enough(found) and (piece := sock.recv(65536)):
        found += piece
    return found


def to_the_end(_: bytes) -> bool:
    return False


def contents(found: bytes) -> list[str]:
    return [json.loads(text) for text in re.findall(rb'"content":("(?:[^"\\]|\\.)*")', found)]


def test_a_body_in_drops(start: Start, connect: Callable[..., socket.socket]) -> None:
    """It takes a place for as long as a whole body may take, and is told so."""
    served = start(settings=Settings(MODEL, most_admitted=1, most_silence=0.2))
    sock = connect(served)
    sock.sendall(head(JSON, content=bytes(1000)))
    sock.settimeout(0.02)
    found = b""
    while not found:
        sock.sendall(b" ")
        with suppress(TimeoutError):
            found = sock.recv(65536)
    assert found.startswith(b"HTTP/1.1 408 ")
    is_well(served)


@pytest.mark.parametrize("seconds", [0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["most_silence", "longest_head"])
def test_how_long_a_head_and_a_body_may_take_is_seconds(name: str, seconds: float) -> None:
    wrong: dict[str, Any] = {name: seconds}
    with pytest.raises(RequestError, match=f"{name} must be seconds above 0"):
        Settings(MODEL, **wrong)


def test_a_body_byte_by_byte(served: Served, connect: Callable[..., socket.socket]) -> None:
    sock = connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in head(JSON, "Connection: close") + CONTENT:
        sock.send(bytes([byte]))
    assert contents(read(sock, to_the_end)) == [post(served, ASKED).json()["choices"][0]["message"]["content"]]
    is_well(served)


def test_a_reader_that_never_reads(served: Served, connect: Callable[..., socket.socket]) -> None:
    """Twenty others are answered, rightly, and the slot is not its own forever."""
    wanted = post(served, ASKED).json()["choices"][0]["message"]["content"]
    long = {"max_tokens": None, "ignore_eos": True, "stream": True, "logprobs": True, "top_logprobs": 20}
    content = json.dumps({**ASKED, **long}).encode()
    for _ in range(4):  # more than there are slots
        sock = connect()
        sock.sendall(head(JSON, content=content) + content)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: post(served, ASKED), range(20)))
    assert [one.json()["choices"][0]["message"]["content"] for one in found] == [wanted] * 20
    is_well(served)


def test_idle_connections(served: Served, connect: Callable[..., socket.socket]) -> None:
    idle = [connect() for _ in range(200)]
    is_well(served)
    half = connect()
    half.sendall(b"POST /v1/chat/compl")  # not even a whole line
    is_well(served)
    idle[7].sendall(head(JSON, "Connection: close") + CONTENT)
    assert b" 200 OK" in read(idle[7], to_the_end)


def test_pipelined_requests(served: Served, connect: Callable[..., socket.socket]) -> None:
    """Answered one after the other and in their order, a wrong one among them."""
    bodies = [ASKED, {**ASKED, "temperature": -1}, {**ASKED, "messages": [{"role": "user", "content": "What?"}]}]
    sock, sent = connect(), b""
    for number, body in enumerate(bodies):
        content = json.dumps(body).encode()
        sent += head(JSON, *(["Connection: close"] if number == 2 else []), content=content) + content
    sock.sendall(sent)
    found = read(sock, to_the_end)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"400", b"200"]
    wanted = [post(served, body).json()["choices"][0]["message"]["content"] for body in (bodies[0], bodies[2])]
    assert contents(found) == wanted
    is_well(served)


def test_expect_continue(served: Served, connect: Callable[..., socket.socket]) -> None:
    """The body is asked for; where it is too large by its own account it is not."""
    sock = connect()
    sock.sendall(head(JSON, "Expect: 100-continue", "Connection: close"))
    assert read(sock, lambda found: b"\r\n\r\n" in found).startswith(b"HTTP/1.1 100 ")
    sock.sendall(CONTENT)
    assert read(sock, to_the_end).startswith(b"HTTP/1.1 200 ")
    large = connect()
    length = f"Content-Length: {len(CONTENT)}".encode()
    large.sendall(head(JSON, "Expect: 100-continue").replace(length, b"Content-Length: 1000000000000"))
    assert read(large, to_the_end).startswith(b"HTTP/1.1 413 ")
    is_well(served)


@pytest.mark.parametrize("streamed", [False, True])
def test_http_1_0(served: Served, connect: Callable[..., socket.socket], streamed: bool) -> None:
    """No chunks, which it does not know, and the connection ends with the answer."""
    content = json.dumps({**ASKED, "stream": streamed}).encode()
    sock = connect()
    sock.sendall(head(JSON, content=content, version="1.0") + content)
    start, _, answer = read(sock, to_the_end).partition(b"\r\n\r\n")
    assert b" 200 OK" in start and b"chunked" not in start
    if streamed:
        assert answer.startswith(b"data: {") and answer.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(answer)["choices"]
    is_well(served)


NO_HTTP = [
    b"\0" * 100,
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0",  # TLS
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 300_000,
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
]


@pytest.mark.parametrize("content", NO_HTTP)
def test_what_is_no_http(served: Served, connect: Callable[..., socket.socket], content: bytes) -> None:
    sock = connect()
    try:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        found = read(sock, to_the_end)
    except OSError:  # the rest of what was sent was not read, and the server is gone already
        found = b""
    assert found == b"" or re.match(rb"HTTP/1.1 4\d\d ", found)
    is_well(served)


READ = ("/", "/health", "/health/ready", "/metrics", "/version", "/openapi.json", "/v1/models", f"/v1/models/{MODEL}")
OF_PAGE = ("/page/info", "/page/page.js")
WRITTEN = ("/v1/chat/completions", "/v1/completions")


@pytest.mark.parametrize("path", [*READ, *OF_PAGE, *WRITTEN, "/nothing", "/v1/models/none", "/page/none"])
def test_methods(served: Served, path: str) -> None:
    """HEAD is GET without its body; OPTIONS allows no other site anything; others are refused with what is allowed."""

    def ask(method: str) -> httpx.Response:
        headers = {"Origin": "https://elsewhere.test"} if method in ("GET", "HEAD", "OPTIONS") else {}
        return httpx.request(method, served.url + path, headers=headers, timeout=PATIENCE)

    got, heading = ask("GET"), ask("HEAD")
    assert heading.status_code == got.status_code and heading.content == b""
    assert heading.headers["content-type"] == got.headers["content-type"]
    assert heading.headers["content-length"] == str(len(got.content)) or path == "/metrics"  # which tells of its own reading
    assert got.status_code == (200 if path in (*READ, *OF_PAGE) else 405 if path in WRITTEN else 404)
    for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW"):
        response = ask(method)
        is_refused(response, 404, 405)
        assert not [name for name in response.headers if name.startswith("access-control")]
        if response.status_code == 405:
            assert response.headers["allow"] == ("POST" if path in WRITTEN else "GET, HEAD")
    if path in WRITTEN:
        assert got.headers["allow"] == heading.headers["allow"] == "POST"
    is_well(served)


WRONG_KEYS = ["", "Bearer", "Bearer wrong", "Basic b25l", "Bearer one two", "Bearer \xe9", "one", "Bearer one" + "e" * 5000]


@pytest.mark.parametrize("value", WRONG_KEYS)
def test_wrong_keys(start: Start, value: str) -> None:
    """Refused before anything of the body is looked at."""
    served = start(settings=Settings(MODEL, api_keys=("one",)))
    headers: Any = {"authorization": value.encode("latin-1"), "content-type": b"application/json"}
    for content in (CONTENT, b"{", b"\xff"):
        response = httpx.post(served.url + CHAT, content=content, headers=headers, timeout=PATIENCE)
        assert "API key" in is_refused(response, 401) and response.headers["www-authenticate"] == "Bearer"
    good: Any = {"authorization": "Bearer one"}
    assert httpx.post(served.url + CHAT, json=ASKED, headers=good, timeout=PATIENCE).status_code == 200
