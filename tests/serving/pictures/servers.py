"""A server on this machine that answers with whatever bytes a test wants, well-formed or not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

PICTURE = bytes(range(256)) * 40
Answer = Callable[[socket.socket, threading.Event], None]


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def whole(body: bytes = PICTURE, *lines: str, status: str = "200 OK") -> Answer:
    """The usual answer."""
    return sent(head(f"Content-Length: {len(body)}", *lines, status=status), body)


def sent(*pieces: bytes) -> Answer:
    """These bytes, and the end of the connection."""

    def answer(client: socket.socket, _: threading.Event) -> None:
        for piece in pieces:
            client.sendall(piece)

    return answer


def dripped(start: bytes, rest: bytes) -> Answer:
    """``start`` at once, then a byte of ``rest`` every 20 ms for 12 s, then all of it: who waits gets a whole answer."""

    def answer(client: socket.socket, stopped: threading.Event) -> None:
        client.sendall(start)
        for place in range(600):
            if stopped.wait(0.02):
                return
            client.sendall(rest[place : place + 1])
        client.sendall(rest[600:])

    return answer


def silent(_: socket.socket, stopped: threading.Event) -> None:
    """Nothing, for as long as anybody waits."""
    stopped.wait(30)


def endless(start: bytes, piece: bytes) -> Answer:
    """``piece`` again and again until the other side has enough."""

    def answer(client: socket.socket, stopped: threading.Event) -> None:
        client.sendall(start)
        while not stopped.is_set():
            client.sendall(piece)

    return answer


class PictureServer:
    """Listens on a port of loopback while it is entered.

    Args:
        answer: what is done with each connection after its request was read.
        context: for TLS.
        family: AF_INET or AF_INET6.

    ``requests`` are the heads that were read, ``connections`` counts also those without a request.
    """

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None, family: int = socket.AF_INET) -> None:
        self.requests: list[str] = []
        self.connections = 0
        self._answer, self._context, self._stopped = answer, context, threading.Event()
        self._listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]

    def __enter__(self) -> PictureServer:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(30)
        with contextlib.suppress(OSError), _secured(client, self._context) as stream:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                received = stream.recv(4096)
                if not received:
                    return
                request += received
            self.requests.append(request.decode("latin-1"))
            self._answer(stream, self._stopped)


@contextlib.contextmanager
def _secured(client: socket.socket, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    with client:
        if context is None:
            yield client
            return
        with context.wrap_socket(client, server_side=True) as stream:
            yield stream
