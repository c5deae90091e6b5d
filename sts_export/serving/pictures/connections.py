"""Connections to addresses that were checked, which end in time whatever the other side does."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpcore2

from sts_export.serving.pictures.addresses import Address


@dataclass(frozen=True)
class Deadline:
    """A moment of the monotonic clock."""

    moment: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds, more than 0.

        Raises:
            httpcore2.TimeoutException: it has passed.
        """
        seconds = self.moment - time.monotonic()
        if seconds <= 0:
            raise httpcore2.TimeoutException
        return seconds


class PinnedBackend(httpcore2.NetworkBackend):
    """Connects to given addresses, in their order, whatever host is asked for.

    The host of a request is then a name only: it stands in the Host header, is sent in the TLS handshake and is what the
    certificate is verified against (httpcore passes it to ``SSLContext.wrap_socket``).  Nobody resolves it a second time.
    """

    def __init__(self, addresses: tuple[Address, ...], deadline: Deadline) -> None:
        self._addresses, self._deadline, self._system = addresses, deadline, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        *others, last = self._addresses
        for place, address in enumerate(others):
            share = self._deadline.left() / (len(self._addresses) - place)
            try:
                return self._stream(address, port, share)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue  # such as IPv6 where there is no route
        return self._stream(last, port, self._deadline.left())

    def _stream(self, address: Address, port: int, timeout: float) -> httpcore2.NetworkStream:
        return TimedStream(self._system.connect_tcp(str(address), port, timeout), self._deadline)


class TimedStream(httpcore2.NetworkStream):
    """A stream whose every step gets the time that is left of the whole, and not a time of its own."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return TimedStream(self._stream.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
