"""Clients that connect and send nothing, or hardly anything, or do not read: they go, and others are served."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from sts_export import Pipeline
from sts_export.serving.settings import Settings
from tests.serving.faults.answers import is_well
from tests.support.scheduling.gates import PATIENCE, Gate, until
from tests.support.scheduling.served import MODEL, Served, Start, chat

HOURS = 3600.0
Connect = Callable[[Served], socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def connected(to: Served) -> socket.socket:
            host, port = to.url.removeprefix("http://").split(":")
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(PATIENCE)
            sock.connect((host, int(port)))
            return sock

        yield connected


def is_closed(sock: socket.socket) -> bool:
    """By the server, after what it sent."""
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.settimeout(PATIENCE)


def is_reset(sock: socket.socket) -> bool:
    """By the server, whatever is still to be read."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def in_drops(sock: socket.socket, content: bytes) -> None:
    """A byte every 10 ms until the server closes the connection."""
    with suppress(OSError):
        for byte in content:
            sock.send(bytes([byte]))
            if is_closed(sock):
                return
            select.select([], [], [], 0.01)
    until(lambda: is_closed(sock))


def is_healthy(served: Served) -> bool:
    return httpx.get(f"{served.url}/health", timeout=PATIENCE).status_code == 200


def test_nothing_is_sent(start: Start, connect: Connect) -> None:
    served = start(settings=Settings(MODEL, longest_head=0.1))
    idle = [connect(served) for _ in range(50)]
    until(lambda: all(map(is_closed, idle)))
    is_well(served)


ENDLESS = b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10_000


def test_a_head_in_drops(start: Start, connect: Connect) -> None:
    """Bytes do not put the end off."""
    served = start(settings=Settings(MODEL, longest_head=0.3))
    in_drops(connect(served), ENDLESS)
    is_well(served)


def test_a_later_head_in_drops(start: Start, connect: Connect) -> None:
    """On a connection that has had its answer."""
    served = start(settings=Settings(MODEL, longest_head=0.3))
    sock = connect(served)
    sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    in_drops(sock, ENDLESS)
    is_well(served)


def test_a_refused_body_in_drops(start: Start, connect: Connect) -> None:
    """Nobody reads it any more."""
    served = start(settings=Settings(MODEL, api_keys=("one",), longest_head=0.3))
    sock = connect(served)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    assert sock.recv(4096).startswith(b"HTTP/1.1 401 ")
    in_drops(sock, b" " * 10_000)
    assert is_healthy(served)


def test_idle_connections_within_the_bound(start: Start, connect: Connect) -> None:
    """They stay, and can be used."""
    served = start(settings=Settings(MODEL, longest_head=HOURS, most_connections=101))
    idle = [connect(served) for _ in range(100)]
    for _ in range(3):
        assert is_healthy(served)
    assert not any(map(is_closed, idle))
    idle[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert idle[0].recv(4096).startswith(b"HTTP/1.1 200 ")


def test_more_idle_connections_than_may_be(start: Start, connect: Connect) -> None:
    """The oldest go, and whoever asks is answered."""
    served = start(settings=Settings(MODEL, longest_head=HOURS, most_connections=20))
    idle = []
    for _ in range(10):
        idle += [connect(served) for _ in range(30)]
        assert is_healthy(served)
    until(lambda: sum(map(is_closed, idle)) >= 280)
    assert not any(map(is_closed, idle[-19:])) and all(map(is_closed, idle[:280]))
    assert is_healthy(served)


def test_answers_under_way_are_not_idle(start: Start, gated: tuple[Pipeline, Gate], connect: Connect) -> None:
    """Where all are busy a new connection is closed."""
    vlm, gate = gated
    served = start(vlm, slots=1, settings=Settings(MODEL, longest_head=0.1, most_connections=2))
    body = {"model": MODEL, "messages": chat("Where?"), "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE) as one, connect(served) as two:
        two.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert two.recv(4096).startswith(b"HTTP/1.1 100 ")  # its body is waited for
        new = [connect(served) for _ in range(5)]
        until(lambda: all(map(is_closed, new)))
        assert not is_closed(two)
        gate.open()
        assert one.read().endswith(b"data: [DONE]\n\n")
    is_well(served)


def test_a_client_that_never_reads(start: Start, connect: Connect) -> None:
    """Answers wait for it to take something, and not for ever."""
    served = start(settings=Settings(MODEL, most_silence=0.1))
    sock = connect(served)
    with suppress(OSError):  # the server reads no more, either
        sock.sendall(b"GET /page/page.js HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
    until(lambda: is_reset(sock))
    is_well(served)
