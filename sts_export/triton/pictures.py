"""Pictures in string tensors."""

from __future__ import annotations

import re

from sts_export.errors import ImageError
from sts_export.serving.pictures.data_urls import data_bytes
from sts_export.serving.pictures.lines import too_large

MOST_BYTES = 20 << 20
# How files of sts_export.media.images.FORMATS begin.  Base64 of none of them begins so.
_FILE = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|P[1-7]\s|....ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)
_DATA_URL = re.compile(rb"data:", re.IGNORECASE)


def read_image(value: bytes, most_bytes: int = MOST_BYTES) -> bytes:
    """Bytes of a picture's file; whether they can be decoded is up to who does it.

    Args:
        value: the file itself, base64 of it on one line, or a data URL.
        most_bytes: of the file.

    Raises:
        ImageError: none of these, damaged or too large.
    """
    if _FILE.match(value):
        if len(value) > most_bytes:
            raise too_large(most_bytes)
        return value
    if not value.isascii():
        raise ImageError(
            "image is neither a picture's file (PNG, JPEG, WebP, ...) nor base64 of one; send the bytes of the whole file"
        )
    text = value.decode("ascii")
    return data_bytes(text if _DATA_URL.match(value) else f"data:;base64,{text}", most_bytes)
