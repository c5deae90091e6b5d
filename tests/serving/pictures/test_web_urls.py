"""What is taken from an http URL, and what programs would read in different ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import ImageError
from sts_export.serving.pictures.web_urls import WebUrl, web_url


@pytest.mark.parametrize(
    ("url", "expected", "header"),
    [
        ("https://a.example", WebUrl("https", "a.example", 443, "/"), "a.example"),
        ("HTTP://A.example:80/b/c.png", WebUrl("http", "a.example", 80, "/b/c.png"), "a.example"),
        ("http://a.example:443/", WebUrl("http", "a.example", 443, "/"), "a.example:443"),
        ("https://a.example:8443?x=1&y=[2]#top", WebUrl("https", "a.example", 8443, "/?x=1&y=[2]"), "a.example:8443"),
        ("https://a.example/@me/ä%20b|c?q=ü", WebUrl("https", "a.example", 443, "/@me/%C3%A4%20b%7Cc?q=%C3%BC"), "a.example"),
        ("https://[2606:4700::0:1111]/", WebUrl("https", "2606:4700::1111", 443, "/"), "[2606:4700::1111]"),
        ("https://[2606:4700::1111]:81/", WebUrl("https", "2606:4700::1111", 81, "/"), "[2606:4700::1111]:81"),
        ("https://bücher.example/", WebUrl("https", "xn--bcher-kva.example", 443, "/"), "xn--bcher-kva.example"),
        ("https://a.example?@b.example/", WebUrl("https", "a.example", 443, "/?@b.example/"), "a.example"),
        ("https://a.example#@b.example/", WebUrl("https", "a.example", 443, "/"), "a.example"),
    ],
)
def test_parts(url: str, expected: WebUrl, header: str) -> None:
    assert web_url(url) == expected
    assert web_url(url).host_header == header


@pytest.mark.parametrize(
    "url",
    [
        "http:",
        "http:/",
        "http://",
        "http:///",
        "http:a.example",
        "http:/a.example/",
        "http:///a.example/",
        "http://?a.example",
        "http://a.example:/",
        "http://a.example:0/",
        "http://a.example:x/",
        "http://a.example:99999/",
        "http://a.example\\@b.example/",
        "http://a.example\\/",
        "http:\\\\a.example\\",
        " http://a.example/",
        "http://a.example/ b",
        "http://a.example/\r\nHost: b.example",
        "http://a.ex\tample/",
        "http://a.example/\0",
        "http://a.example\x7f/",
        "http://a%2eexample/",
        "http://[::1/",
        "http://::1/",
        "http://[fe80::1%25eth0]/",
        "http://a.example／b/",
        "http://a.example？b/",
        "http://a.example＠b.example/",
        "http://a.example/\ud800",
        "http://a.example/" + "a" * 10000,
        "ftp://a.example/",
    ],
)
def test_malformed_and_ambiguous_urls_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match=r"is no URL to fetch from; write it as https://HOST/PATH, percent-encoded$"):
        web_url(url)


@pytest.mark.parametrize("url", ["http://user@a.example/", "http://user:password@a.example/", "http://@a.example/"])
def test_users_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match=r"^'\.\.\.a.example/' has a user before its host"):
        web_url(url)


@settings(deadline=None, derandomize=True)
@given(st.text(), st.sampled_from(["http://", "https://", "http:", ""]))
def test_a_request_is_never_split(rest: str, start: str) -> None:
    """Whatever is accepted is safe in a request's first line and its Host."""
    try:
        url = web_url(start + rest)
    except ImageError as error:
        assert "\n" not in str(error)
        return
    for text in (url.target, url.host_header):
        assert text.isascii() and text.isprintable() and " " not in text
    assert url.target.startswith("/")
