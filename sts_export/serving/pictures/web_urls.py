"""http and https URLs, taken apart once: what is checked is what is connected to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from sts_export.errors import ImageError
from sts_export.serving.pictures.hosts import host_and_port
from sts_export.serving.pictures.lines import shown

_PORTS = {"http": 80, "https": 443}
_MOST_CHARACTERS = 8192
# Programs differ in what they make of these: some drop them, and to some a backslash is a slash.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_KEPT = "/?%:@!$&'()*+,;=~-._[]"


@dataclass(frozen=True)
class WebUrl:
    """An http or https URL in its parts.

    Args:
        scheme: ``http`` or ``https``.
        host: in the spelling of ``host_and_port``.
        port: the scheme's own if the URL has none.
        target: path and query in ASCII, for the request.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """As a browser would write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def web_url(url: str) -> WebUrl:
    """Parts of an http or https URL.

    Raises:
        ImageError: malformed or ambiguous, or with a user.
    """
    try:
        return _parts(url)
    except ValueError:  # of urlsplit and quote, too: brackets that do not match, characters that are none
        raise ImageError(f"{shown(url)} is no URL to fetch from; write it as https://HOST/PATH, percent-encoded") from None


def _parts(url: str) -> WebUrl:
    if len(url) > _MOST_CHARACTERS or _AMBIGUOUS.search(url):
        raise ValueError
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ImageError(f"{shown(url)} has a user before its host; give a URL that needs none")
    found = host_and_port(parts.netloc)
    if found is None or parts.scheme not in _PORTS:
        raise ValueError
    host, port = found
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return WebUrl(parts.scheme, host, port or _PORTS[parts.scheme], quote(target, safe=_KEPT))
