"""Bodies: whole ones come through, and what is too large, too slow, compressed or broken is refused in one line."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import zlib

import pytest

from sts_export.errors import ImageError
from tests.serving.pictures.fetches import fetch_here
from tests.serving.pictures.servers import PICTURE, Answer, PictureServer, dripped, endless, head, sent, silent, whole

SECRET = "what the other host has sent"
BROKEN = "cannot be fetched: its host does not answer, or not as HTTP demands; check the URL, or send data:"
LATE = r"was not here within 0\.3 s; try again, or send data:"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def refused(answer: Answer, match: str, *, most_bytes: int = 1 << 20, seconds: float = 120.0) -> None:
    with PictureServer(answer) as server:
        with pytest.raises(ImageError, match=match) as error:
            fetch_here(f"http://images.test:{server.port}/cat.png?key=1", most_bytes=most_bytes, seconds=seconds)
        assert server.connections == 1
    line = str(error.value)
    assert "\n" not in line and SECRET not in line and "key" not in line


@pytest.mark.parametrize(
    "answer",
    [
        whole(),
        whole(PICTURE, "Content-Type: text/html"),  # the decoder decides
        whole(PICTURE, "Content-Encoding: identity"),
        whole(PICTURE, f"Content-Length: {len(PICTURE)}, {len(PICTURE)}"),
        sent(head(), PICTURE),  # until the connection ends
        sent(head("Transfer-Encoding: chunked"), chunked(PICTURE[:1], PICTURE[1:], b"")),
        sent(head(status="103 Early Hints"), head(f"Content-Length: {len(PICTURE)}"), PICTURE),
        sent(head(f"Content-Length: {len(PICTURE)}"), PICTURE + b"more than was said"),
    ],
)
def test_whole_bodies(answer: Answer) -> None:
    with PictureServer(answer) as server:
        assert fetch_here(f"http://images.test:{server.port}/cat.png") == PICTURE
    request = server.requests[0].lower()
    assert "\r\naccept-encoding: identity\r\n" in request
    assert "cookie" not in request and "authorization" not in request


def test_the_limit_is_exact() -> None:
    for answer in (whole(), sent(head(), PICTURE)):
        with PictureServer(answer) as server:
            assert fetch_here(f"http://images.test:{server.port}/", most_bytes=len(PICTURE)) == PICTURE
        refused(answer, f"^the picture is larger than {len(PICTURE) - 1} bytes", most_bytes=len(PICTURE) - 1)


def test_a_length_that_is_too_large_is_believed() -> None:
    """Nothing of the body is waited for."""
    refused(sent(head("Content-Length: 99999999999999")), "is larger than 1 MiB; send a smaller one")


@pytest.mark.parametrize(
    "answer",
    [
        endless(head(), PICTURE),
        endless(head("Transfer-Encoding: chunked"), chunked(PICTURE)),
        endless(head("Transfer-Encoding: chunked"), chunked(b"a", b"b") * 1000),
        sent(head("Transfer-Encoding: chunked"), b"ffffffff\r\n", bytes(1 << 20)),
    ],
)
def test_endless_bodies(answer: Answer) -> None:
    refused(answer, "is larger than 10000 bytes; send a smaller one", most_bytes=10_000)


@pytest.mark.parametrize(
    "answer",
    [
        sent(head(f"Content-Length: {len(PICTURE) + 1}"), PICTURE),  # more was promised
        sent(head("Content-Length: -1"), PICTURE),
        sent(head("Content-Length: 1", "Content-Length: 2"), PICTURE),
        sent(head("Content-Length: 1x"), PICTURE),
        sent(head(f"Content-Length: {'9' * 5000}"), PICTURE),
        sent(head("Transfer-Encoding: chunked"), chunked(PICTURE)),  # no last chunk
        sent(head("Transfer-Encoding: chunked"), b"-5\r\n" + PICTURE),
        sent(head("Transfer-Encoding: gzip"), PICTURE),
        sent(b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n" + PICTURE),
        sent(head(status="101 Switching Protocols"), PICTURE),  # to what was not asked for
        sent(b"SSH-2.0-" + SECRET.encode() + b"\r\n"),
        sent(SECRET.encode()),
        sent(b""),
        sent(b"\x15\x03\x01\x00\x02\x02\x46"),
        endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        endless(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 100),
    ],
)
def test_broken_answers(answer: Answer) -> None:
    refused(answer, BROKEN)


def test_a_connection_that_is_reset() -> None:
    def answer(client: socket.socket, _: threading.Event) -> None:
        client.sendall(head("Content-Length: 1000") + b"part")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends RST

    refused(answer, BROKEN)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ImageError, match=BROKEN):
        fetch_here(f"http://images.test:{port}/")


@pytest.mark.parametrize("status", [201, 204, 206, 401, 403, 404, 429, 500, 503, 999])
def test_other_statuses(status: int) -> None:
    answer = sent(head(f"X-Secret: {SECRET}", status=f"{status} {SECRET}"), SECRET.encode())
    refused(answer, r"was refused or is missing \(no status 200\); check the URL, or send data:")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x"])
def test_compressed_bodies(encoding: str) -> None:
    """Also those that say so twice, and bombs."""
    bomb = gzip.compress(bytes(1 << 20)) if "gzip" in encoding.lower() else zlib.compress(bytes(1 << 20))
    refused(whole(bomb, f"Content-Encoding: {encoding}"), r"came compressed \(Content-Encoding\)")
    refused(whole(bomb, "Content-Encoding: identity", f"content-encoding: {encoding}"), "came compressed")


SLOW = {
    "nothing at all": silent,
    "status line": dripped(b"HTTP/1.1 200 OK\r\n", b"A: " + b"b" * 900 + b"\r\n\r\n"),
    "many hints": dripped(b"", head(status="103 Early Hints") * 50 + head("Content-Length: 0")),
    "body": dripped(head("Content-Length: 1000"), bytes(1000)),
    "body without length": dripped(head(), bytes(1000)),
    "chunks": dripped(head("Transfer-Encoding: chunked"), chunked(*[b"a"] * 200) + chunked(b"")),
    "trailers": dripped(head("Transfer-Encoding: chunked") + b"0\r\n", b"A: " + b"b" * 900 + b"\r\n\r\n"),
}


@pytest.mark.parametrize("part", SLOW)
def test_slow_servers(part: str) -> None:
    """Every byte is in time for the one before, and all are too late."""
    refused(SLOW[part], LATE, seconds=0.3)


def test_a_server_that_does_not_accept() -> None:
    """The system accepts in its place, and nobody reads the request."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ImageError, match=LATE):
        fetch_here(f"http://images.test:{listener.getsockname()[1]}/", seconds=0.3)
