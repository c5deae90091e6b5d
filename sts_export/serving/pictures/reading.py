"""From the URL of a picture to the bytes of its file."""

from __future__ import annotations

from sts_export.errors import ImageError
from sts_export.serving.pictures.data_urls import data_bytes
from sts_export.serving.pictures.file_urls import file_bytes
from sts_export.serving.pictures.lines import INSTEAD, shown
from sts_export.serving.pictures.rules import PictureRules


def picture_bytes(url: str, rules: PictureRules) -> bytes:
    """Bytes of the file that a URL stands for; whether they are a picture is up to who decodes them.

    Args:
        url: a data URL, or, where ``rules`` allow them, an http, https or file URL.
        rules: what the server's operator allows.

    Raises:
        ImageError: nothing that this server takes, refused by the rules, not there, damaged, too slow or too large.  The line
            has at most 60 characters of the URL, never its query or user, and nothing that another host has sent.
    """
    scheme = url[:6].partition(":")[0].lower()
    if scheme == "data":
        return data_bytes(url, rules.most_bytes)
    if scheme == "file":
        return file_bytes(url, rules)
    if scheme in ("http", "https"):
        from sts_export.serving.pictures.fetching import fetched

        return fetched(url, rules)
    raise ImageError(f"{shown(url)} is no picture that this server takes; {INSTEAD}")
