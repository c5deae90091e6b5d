"""Pictures inside their URLs (RFC 2397)."""

from __future__ import annotations

import base64
import re

from sts_export.errors import ImageError
from sts_export.serving.pictures.lines import INSTEAD, shown, too_large

_HEAD = re.compile(r"data:(image/[\w.+-]+)?(;[\w.+-]+=[^;,\s]*)*;base64,", re.IGNORECASE | re.ASCII)
_MOST_HEAD = 256  # characters


def data_bytes(url: str, most_bytes: int) -> bytes:
    """Bytes of the picture in a data URL.

    The media type may be absent or that of any picture: the decoder looks at the bytes.  Base64 is that of RFC 4648,
    section 4, padded and on one line: line breaks, spaces and percent-encoding are refused, and so is the URL-safe alphabet.

    Raises:
        ImageError: not of a picture, not in base64, damaged, or too large (which is checked before decoding).
    """
    head = _HEAD.match(url[:_MOST_HEAD])
    if head is None:
        start = url[:_MOST_HEAD].partition(",")[0]
        raise ImageError(f"{shown(start)} is no data URL of a picture in base64; {INSTEAD}")
    length = len(url) - head.end()
    if length // 4 * 3 - url[-2:].count("=") > most_bytes:
        raise too_large(most_bytes)
    text = url[head.end() :]
    try:
        if length % 4:  # releases of Python differ in whether they mind too much padding
            raise ValueError
        return base64.b64decode(text, validate=True)
    except ValueError:  # characters that are not ASCII are no binascii.Error
        raise ImageError(_reason(text)) from None


def _reason(text: str) -> str:
    if re.search(r"\s", text):
        return "the picture's base64 has spaces or line breaks; write it on one line"
    if re.fullmatch(r"[\w-]+={0,2}", text, re.ASCII) and re.search("[-_]", text):
        return "the picture's base64 is URL-safe; write + and / where it has - and _"
    return "the picture's base64 is damaged; encode the bytes of the file again"
