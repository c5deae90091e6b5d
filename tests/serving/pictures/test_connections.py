"""Every step of a connection gets what is left of the whole time, whatever time is asked for."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from ipaddress import ip_address

import httpcore2
import pytest

from sts_export.serving.pictures.connections import Deadline, PinnedBackend, TimedStream


class Recorder(httpcore2.NetworkStream):
    """Does nothing; ``timeouts`` are those of its steps."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.timeouts.append(timeout)
        return b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        self.timeouts.append(timeout)
        return self


STEPS: list[Callable[[httpcore2.NetworkStream], object]] = [
    lambda stream: stream.read(1, 1e9),
    lambda stream: stream.write(b"a", None),
    lambda stream: stream.start_tls(ssl.create_default_context(), "a.example", 1e9),
    lambda stream: stream.start_tls(ssl.create_default_context(), "a.example").read(1),
]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_gets_what_is_left(step: Callable[[httpcore2.NetworkStream], object]) -> None:
    recorder = Recorder()
    step(TimedStream(recorder, Deadline.after(1000)))
    assert recorder.timeouts
    assert all(timeout is not None and 0 < timeout <= 1000 for timeout in recorder.timeouts)


@pytest.mark.parametrize("step", STEPS)
def test_after_the_deadline_nothing_is_done(step: Callable[[httpcore2.NetworkStream], object]) -> None:
    recorder = Recorder()
    with pytest.raises(httpcore2.TimeoutException):
        step(TimedStream(recorder, Deadline.after(0)))
    assert recorder.timeouts == []


def test_after_the_deadline_nobody_is_connected_to() -> None:
    for addresses in ((ip_address("127.0.0.1"),), (ip_address("127.0.0.1"), ip_address("::1"))):
        with pytest.raises(httpcore2.TimeoutException):
            PinnedBackend(addresses, Deadline.after(0)).connect_tcp("a.example", 9)
