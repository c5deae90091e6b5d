"""Pictures in string tensors are taken as files, as base64 and as data URLs, and as nothing else."""

from __future__ import annotations

import base64
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.errors import ImageError
from sts_export.media.images import FORMATS, load_image
from sts_export.testing.checkpoints import random_image
from sts_export.triton.pictures import read_image


def file_of(kind: str) -> bytes:
    stream = io.BytesIO()
    random_image(1, (40, 30)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_in_every_form(kind: str) -> None:
    file = file_of(kind)
    text = base64.b64encode(file)
    for value in (file, text, b"data:image/png;base64," + text, b"DATA:;base64," + text):
        assert read_image(value) == file
    load_image(read_image(text))


def test_a_camera_file() -> None:
    """Big-endian TIFF, and PPM in plain text."""
    for file in (b"MM\0*\0\0\0\x08", b"P3\n1 1\n255\n0 0 0\n", b"P6 1 1 255 abc"):
        assert read_image(file) == file == read_image(base64.b64encode(file))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b"\0\1\2\xff no picture", "image is neither a picture's file"),
        ("Bild".encode("utf-16"), "image is neither a picture's file"),
        (b"cat.jpg", "the picture's base64 is damaged"),
        (b"/9j/4AA", "the picture's base64 is damaged"),
        (b"iVBOR w0K", "the picture's base64 has spaces or line breaks"),
        (b"_9j_", "the picture's base64 is URL-safe"),
        (b"data:text/plain,hello", "is no data URL of a picture"),
        (b"https://example.com/cat.jpg", "the picture's base64 is damaged"),
    ],
)
def test_anything_else_is_refused_in_one_line(value: bytes, line: str) -> None:
    with pytest.raises(ImageError, match=line) as raised:
        read_image(value)
    assert "\n" not in str(raised.value) and "; " in str(raised.value)


def test_no_form_may_be_too_large() -> None:
    file = file_of("PNG")
    text = base64.b64encode(file)
    for value in (file, text, b"data:;base64," + text):
        assert read_image(value, len(file)) == file
        with pytest.raises(ImageError, match="the picture is larger than"):
            read_image(value, len(file) - 1)


@given(st.binary(max_size=80))
def test_whatever_comes(value: bytes) -> None:
    try:
        assert isinstance(read_image(value), bytes)
    except ImageError as error:
        assert "\n" not in str(error)
