"""Server-side request forgery: no URL makes the server speak to what is not public, or not allowed."""

from __future__ import annotations

import socket

import pytest

from sts_export.errors import ImageError
from sts_export.serving.pictures.fetching import fetched
from sts_export.serving.pictures.reading import picture_bytes
from sts_export.serving.pictures.rules import PictureRules
from tests.serving.pictures.fetches import Names, fetch_here
from tests.serving.pictures.servers import PICTURE, PictureServer, head, sent, whole

ANY = PictureRules(hosts=("*",))
NOT_PUBLIC = "is on no public host that can be found; check its name, or send data:"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:0:0:0:0:80ff:fffe]",  # Teredo
        "[fe80::1]",
        "[fd00:ec2::254]",
        "１２７。０。０。１",
        "①②⑦.⓪.⓪.①",
        "127.0.0.1.",
    ],
)
def test_addresses_in_urls(host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(ImageError, match=NOT_PUBLIC):
            picture_bytes(f"{scheme}://{host}/latest/meta-data", ANY)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.1", "[::1%25lo]", "[::1%1]"]
)
def test_other_spellings_of_addresses(host: str) -> None:
    with pytest.raises(ImageError, match="is no URL to fetch from"):
        picture_bytes(f"http://{host}/", ANY)


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("93.184.216.34", "127.0.0.1"),
        ("127.0.0.1", "93.184.216.34"),
        ("93.184.216.34", "2606:4700::1111", "::1"),
        ("93.184.216.34", "10.0.0.1"),
        ("93.184.216.34",) * 10 + ("192.168.0.1",),  # beyond those that are tried
        ("::ffff:10.0.0.1",),
        ("64:ff9b::a9fe:a9fe",),
        (),
    ],
)
def test_names_with_an_address_that_is_not_public(addresses: tuple[str, ...]) -> None:
    """One line for all of them, and for names without an address: what a name is inside a network is nobody's business."""
    names = Names(a_example=addresses)
    with pytest.raises(ImageError, match=NOT_PUBLIC):
        fetched("https://a.example/", ANY, resolve=names)
    assert names.asked == ["a.example"]


@pytest.mark.parametrize("entry", ["localhost", "*"])
def test_the_public_function_never_connects_to_this_machine(entry: str) -> None:
    with PictureServer(whole()) as server:
        for host in ("localhost", "127.0.0.1"):
            with pytest.raises(ImageError):
                picture_bytes(f"http://{host}:{server.port}/", PictureRules(hosts=(f"{entry}:{server.port}",)))
    assert server.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://b.example/",
        "http://a.example.evil.test/",
        "http://evil-a.example/",
        "http://a.example:8080/",
        "http://127.0.0.1#@a.example/",
        "http://127.0.0.1?@a.example/",
        "http://127.0.0.1/@a.example/",
        "http://127.0.0.1:80/a.example",
        "http://[::1]#a.example",
        "http://127.0.0.1;a.example/",
        "http://127.0.0.1%23@a.example/",
        "http://a.example@127.0.0.1/",
        "http://a.example:80@127.0.0.1/",
        "http://a.example\\@127.0.0.1/",
        "http://127.0.0.1\\@a.example/",
        "http://127.0.0.1\\a.example/",
        "http://a.example /",
        "http://a.example\n.evil.test/",
        "http://a.example%00.evil.test/",
        "http://a.example%2f.evil.test/",
        "http://a.example／.evil.test/",
        "http://a.example。evil.test/",
        "http://а.example/",  # a Cyrillic letter
        "https:a.example",
        "http:/a.example",
    ],
)
def test_nothing_but_the_host_itself_is_asked_for(url: str) -> None:
    names = Names()
    with pytest.raises(ImageError):
        fetched(url, PictureRules(hosts=("a.example",)), resolve=names)
    assert names.asked == []


def test_the_allowed_host_is_asked_for() -> None:
    """The fault tests above are no accident."""
    for host in ("a.example", "A.EXAMPLE", "a.example.", "a。example", "ａ.example"):
        names = Names()
        with pytest.raises(ImageError, match=NOT_PUBLIC):
            fetched(f"http://{host}/", PictureRules(hosts=("a.example",)), resolve=names)
        assert names.asked == ["a.example"]


def test_without_hosts_nothing_is_fetched() -> None:
    names = Names(a_example=("93.184.216.34",))
    with pytest.raises(ImageError, match=r"^this server fetches no pictures; send data:"):
        fetched("https://a.example/", PictureRules(), resolve=names)
    assert names.asked == []


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with PictureServer(whole()) as inner:
        answer = sent(head(f"Location: http://127.0.0.1:{inner.port}/", "Content-Length: 0", status=f"{status} Elsewhere"))
        with PictureServer(answer) as outer:
            with pytest.raises(ImageError, match="is a redirect, which this server does not follow"):
                fetch_here(f"http://images.test:{outer.port}/cat.png")
            assert len(outer.requests) == 1
    assert inner.connections == 0


def test_a_name_is_resolved_once() -> None:
    """A second answer would be another one (DNS rebinding)."""
    names = Names(images_test=("127.0.0.1",))
    with PictureServer(whole()) as server:
        assert fetch_here(f"http://images.test:{server.port}/a.png?b", names=names) == PICTURE
    assert names.asked == ["images.test"]
    assert server.requests[0].startswith("GET /a.png?b HTTP/1.1\r\n")
    assert f"\r\nHost: images.test:{server.port}\r\n" in server.requests[0]


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with PictureServer(whole()) as proxy, PictureServer(whole(b"direct")) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert fetch_here(f"http://images.test:{server.port}/") == b"direct"
    assert proxy.connections == 0


def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    """As where a name has an IPv6 address and the machine no route to it."""
    names = Names(images_test=("::1", "127.0.0.1"))
    with PictureServer(whole()) as server:
        assert fetch_here(f"http://images.test:{server.port}/", names=names) == PICTURE


def test_ipv6_addresses_in_urls() -> None:
    try:
        server = PictureServer(whole(), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with server:
        assert fetch_here(f"http://[0::1]:{server.port}/", port=server.port) == PICTURE
    assert f"\r\nHost: [::1]:{server.port}\r\n" in server.requests[0]
