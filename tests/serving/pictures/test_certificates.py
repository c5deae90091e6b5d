"""TLS: the name of the URL is what the server is told and what its certificate is verified against."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from sts_export.errors import ImageError
from tests.serving.pictures.fetches import Names, fetch_here
from tests.serving.pictures.servers import PICTURE, PictureServer, dripped, head, whole

NAMES = Names(images_test=("127.0.0.1",), other_test=("127.0.0.1",))
NOT_TRUSTED = "has a certificate that this server does not trust for its host; check the URL, or send data:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem of images.test and 127.0.0.1, signed by nobody else."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command on this machine")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=other.test"
    names = ["-addext", "subjectAltName=DNS:images.test,IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


class Secured:
    """A TLS context of the server; ``names`` are those that it was told (SNI)."""

    def __init__(self, folder: Path) -> None:
        self.names: list[str | None] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.context.sni_callback = self._told

    def _told(self, stream: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.names.append(name)


@pytest.fixture
def secured(folder: Path) -> Secured:
    return Secured(folder)


@pytest.fixture
def trust(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def test_the_name_of_the_url_counts_and_not_the_address(secured: Secured, trust: ssl.SSLContext) -> None:
    with PictureServer(whole(), secured.context) as server:
        assert fetch_here(f"https://images.test:{server.port}/", names=NAMES, trust=trust) == PICTURE
    assert secured.names == ["images.test"]
    assert f"\r\nHost: images.test:{server.port}\r\n" in server.requests[0]


def test_a_certificate_of_another_name_is_refused(secured: Secured, trust: ssl.SSLContext) -> None:
    """It is valid for the address that is connected to, which nobody asked for."""
    with PictureServer(whole(), secured.context) as server, pytest.raises(ImageError, match=NOT_TRUSTED):
        fetch_here(f"https://other.test:{server.port}/", names=NAMES, trust=trust)
    assert secured.names == ["other.test"]
    assert server.requests == []


def test_an_address_needs_a_certificate_of_its_own(secured: Secured, trust: ssl.SSLContext) -> None:
    with PictureServer(whole(), secured.context) as server:
        assert fetch_here(f"https://127.0.0.1:{server.port}/", trust=trust) == PICTURE
    assert secured.names == [None]  # RFC 6066 knows names only


def test_the_system_does_not_trust_a_certificate_that_nobody_signed(secured: Secured) -> None:
    with PictureServer(whole(), secured.context) as server, pytest.raises(ImageError, match=NOT_TRUSTED):
        fetch_here(f"https://images.test:{server.port}/", names=NAMES)
    assert server.requests == []


def test_a_server_without_tls() -> None:
    """It waits for the end of a request, as TLS waits for its answer."""
    with PictureServer(whole()) as server, pytest.raises(ImageError, match=r"was not here within 0\.3 s"):
        fetch_here(f"https://images.test:{server.port}/", seconds=0.3)
    assert server.requests == []


def test_a_slow_server(secured: Secured, trust: ssl.SSLContext) -> None:
    answer = dripped(head("Content-Length: 1000"), bytes(1000))
    with PictureServer(answer, secured.context) as server, pytest.raises(ImageError, match=r"was not here within 0\.5 s"):
        fetch_here(f"https://images.test:{server.port}/", names=NAMES, trust=trust, seconds=0.5)


def test_a_handshake_that_does_not_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ImageError, match=r"was not here within 0\.3 s"):
        fetch_here(f"https://images.test:{listener.getsockname()[1]}/", seconds=0.3)
