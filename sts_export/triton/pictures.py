"""A picture as a client puts it into a tensor."""

from __future__ import annotations

import re

from sts_export.serving.pictures.data_urls import data_bytes
from sts_export.serving.pictures.lines import too_large

_DATA = re.compile(rb"data:", re.IGNORECASE)
# What no picture's file consists of: base64, or an attempt at it.
_TEXT = re.compile(rb"[\w+/=-]*\s*", re.ASCII)


def read_image(value: bytes, most_bytes: int) -> bytes:
    """Bytes of a picture's file; whether they are a picture is up to who decodes them.

    Args:
        value: the file itself, base64 of it (which JSON needs), or a data URL.
        most_bytes: of the file.

    Raises:
        ImageError: too large, or damaged base64.
    """
    if _DATA.match(value):
        return data_bytes(value.decode("ascii", "replace"), most_bytes)
    if _TEXT.fullmatch(value):
        return data_bytes(f"data:;base64,{value.decode('ascii').strip()}", most_bytes)
    if len(value) > most_bytes:
        raise too_large(most_bytes)
    return value
