"""One spelling of a host, and the operator's list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import RequestError
from sts_export.serving.pictures.hosts import check_hosts, host_and_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Images.Example.ORG", ("images.example.org", None)),
        ("images.example.org.", ("images.example.org", None)),
        ("images.example.org:8443", ("images.example.org", 8443)),
        ("my_host", ("my_host", None)),
        ("93.184.216.34", ("93.184.216.34", None)),
        ("[2606:4700:0:0::1111]:443", ("2606:4700::1111", 443)),
        ("bücher.example", ("xn--bcher-kva.example", None)),
        ("BÜCHER。example", ("xn--bcher-kva.example", None)),
        ("straße.example", ("xn--strae-oqa.example", None)),
        ("１２７。０。０。１", ("127.0.0.1", None)),
        ("127.0.0.1.", ("127.0.0.1", None)),
        ("1.example", ("1.example", None)),
        ("a\u200bb.example", ("ab.example", None)),  # a space without width is nothing to UTS 46
    ],
)
def test_spellings(text: str, expected: tuple[str, int | None]) -> None:
    assert host_and_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        ".a",
        "a..b",
        "-a.b",
        "a-.b",
        "a b",
        "a/b",
        "a@b",
        "a%2eb",
        "a:",
        "a:b",
        "a:0",
        "a:65536",
        "a:８０",
        "a:80:80",
        "::1",
        "[::1",
        "[]",
        "[1.2.3.4]",
        "[fe80::1%eth0]",
        "[v1.a]",
        "[::1]x",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "127.0.0.01",
        "256.0.0.1",
        "1.2.3.4.5",
        "a.1",
        "a.0x1",
        "0X7F.1",
        "a" * 64,
        ".".join(["a" * 63] * 4) + ".aa",
        "\u2488.example",  # one character that is "1."
        "a\ud800b",
        "\uff0f.example",  # a full-width slash
    ],
)
def test_malformed_hosts(text: str) -> None:
    assert host_and_port(text) is None


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=300))
def test_a_host_is_ascii_and_its_own_spelling(text: str) -> None:
    found = host_and_port(text)
    if found is not None:
        host = found[0]
        assert host.isascii() and not set(host) & set("/?#@\\%[] ")
        assert host_and_port(f"[{host}]" if ":" in host else host) == (host, None)


@pytest.mark.parametrize(
    ("entry", "host", "port", "allowed"),
    [
        ("images.example.org", "images.example.org", 80, True),
        ("images.example.org", "images.example.org", 443, True),
        ("images.example.org", "images.example.org", 8080, False),
        ("images.example.org", "a.images.example.org", 443, False),
        ("images.example.org", "example.org", 443, False),
        ("images.example.org:8080", "images.example.org", 8080, True),
        ("images.example.org:8080", "images.example.org", 80, False),
        ("IMAGES.example.org.", "images.example.org", 80, True),
        ("bücher.example", "xn--bcher-kva.example", 443, True),
        ("*.example.org", "a.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "badexample.org", 443, False),
        ("*.example.org", "a.example.org.evil.test", 443, False),
        ("*.example.org:444", "a.example.org", 444, True),
        ("*.example.org:444", "a.example.org", 443, False),
        ("*", "anything.test", 443, True),
        ("*", "anything.test", 22, False),
        ("*:8080", "anything.test", 8080, True),
        ("93.184.216.34", "93.184.216.34", 80, True),
        ("[2606:4700::0:1111]", "2606:4700::1111", 80, True),
    ],
)
def test_what_an_entry_allows(entry: str, host: str, port: int, allowed: bool) -> None:
    assert check_hosts((entry,))[0].allows(host, port) is allowed


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "https://images.example.org",
        "images.example.org/",
        "images.example.org, other.org",
        "user@images.example.org",
        "a.*.example.org",
        "*example.org",
        "*.",
        "**",
        "*.*",
        "*:0",
        "*:70000",
        "*:",
        "images.example.org:",
        "*.93.184.216.34",
        "*.216.34",
        "2130706433",
        "2606:4700::1111",
    ],
)
def test_malformed_entries_are_refused(entry: str) -> None:
    with pytest.raises(RequestError, match="is no host to allow; give a name") as error:
        check_hosts(("images.example.org", entry))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ["127.0.0.1", "10.0.0.5:8080", "[::1]", "169.254.169.254", "[::ffff:8.8.8.8]"])
def test_entries_that_can_never_be_fetched_from_are_refused(entry: str) -> None:
    with pytest.raises(RequestError, match="is no public address"):
        check_hosts((entry,))
