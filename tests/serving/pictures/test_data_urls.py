"""Data URLs: the same bytes as the standard library's, or one line."""

from __future__ import annotations

import base64
import urllib.request

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import ImageError
from sts_export.serving.pictures.data_urls import data_bytes

HEADS = [
    "data:image/png;base64,",
    "data:;base64,",
    "data:image/svg+xml;charset=utf-8;base64,",
    "data:image/vnd.microsoft.icon;name=a.b;x=;base64,",
    "DATA:IMAGE/JPEG;BASE64,",
]


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(HEADS), st.binary(max_size=200))
def test_the_bytes_come_back(head: str, picture: bytes) -> None:
    url = head + base64.b64encode(picture).decode()
    assert data_bytes(url, 200) == picture
    with urllib.request.urlopen(url.replace("BASE64", "base64")) as independent:
        assert independent.read() == picture


@settings(deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=50))
def test_the_limit_is_exact(picture: bytes) -> None:
    url = HEADS[0] + base64.b64encode(picture).decode()
    assert data_bytes(url, len(picture)) == picture
    if len(picture) > 1:
        with pytest.raises(ImageError, match=rf"^the picture is larger than {len(picture) - 1} bytes; send a smaller one$"):
            data_bytes(url, len(picture) - 1)


def test_the_size_is_checked_before_decoding() -> None:
    """What is too large and damaged is too large."""
    with pytest.raises(ImageError, match="larger than 2 MiB"):
        data_bytes(HEADS[0] + "!" * (3 << 20), 2 << 20)


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:text/plain;base64,AAAA",
        "data:image/;base64,AAAA",
        "data:image/png;base64;charset=utf-8,AAAA",
        "data:image/png;charset;base64,AAAA",
        "data:image/png; base64,AAAA",
        "data: image/png;base64,AAAA",
        "data:image/png\n;base64,AAAA",
        f"data:image/png;name={'a' * 300};base64,AAAA",
    ],
)
def test_other_data_urls_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match=r"is no data URL of a picture in base64; send data:image/png;base64,\.\.\."):
        data_bytes(url, 100)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("AAAA\nAAAA", "has spaces or line breaks"),
        ("AAAA AAAA", "has spaces or line breaks"),
        ("AAAA\r\n", "has spaces or line breaks"),
        ("-_-_", "is URL-safe"),
        ("AA-A", "is URL-safe"),
        ("AAA", "is damaged"),
        ("A", "is damaged"),
        ("AA=", "is damaged"),
        ("AAAA=", "is damaged"),
        ("=AAA", "is damaged"),
        ("AA==AAAA", "is damaged"),
        ("A%3D%3D", "is damaged"),
        ("AAA!", "is damaged"),
        ("AAAä", "is damaged"),
        ("AAA\ud800", "is damaged"),
        ("AAA\0", "is damaged"),
    ],
)
def test_damaged_base64_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^the picture's base64 {reason}"):
        data_bytes(HEADS[0] + text, 100)


def test_an_empty_picture_is_left_to_the_decoder() -> None:
    assert data_bytes(HEADS[0], 100) == b""
