"""Pictures from the web, for clients who must not see with this server's eyes (server-side request forgery)."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpcore2

from sts_export.errors import ImageError
from sts_export.serving.pictures.addresses import Address, Resolver, is_public, resolved
from sts_export.serving.pictures.connections import Deadline, PinnedBackend
from sts_export.serving.pictures.hosts import literal
from sts_export.serving.pictures.lines import INSTEAD, shown, too_large
from sts_export.serving.pictures.rules import PictureRules
from sts_export.serving.pictures.web_urls import WebUrl, web_url

_MOST_TRIED = 4  # addresses of a host


def fetched(
    url: str,
    rules: PictureRules,
    *,
    resolve: Resolver = resolved,
    permitted: Callable[[Address], bool] = is_public,
    trust: ssl.SSLContext | None = None,
) -> bytes:
    """Bytes of the body of an http or https URL.

    One GET to an address that was checked: no redirects, proxies, cookies, credentials or compression.  The lines of errors
    say nothing of what was received, nor which of a host's addresses were refused.

    Args:
        url: begins with ``http:`` or ``https:``.
        rules: which hosts, and the limits.
        resolve: name -> all addresses.
        permitted: which addresses may be connected to; every address of a host has to be.
        trust: for certificates; None: the system's authorities.

    Raises:
        ImageError: refused by the rules, not found, too slow, too large, or no plain answer of status 200.
    """
    if not rules.hosts:
        raise ImageError(f"this server fetches no pictures; {INSTEAD}")
    place = web_url(url)
    if not rules.allow(place.host, place.port):
        raise ImageError(f"this server fetches no pictures from the host or port of {shown(url)}; {INSTEAD}")
    deadline = Deadline.after(rules.seconds)
    address = literal(place.host)
    addresses = resolve(place.host) if address is None else (address,)
    if not addresses or not all(map(permitted, addresses)):
        raise ImageError(f"{shown(url)} is on no public host that can be found; check its name, or {INSTEAD}")
    backend = PinnedBackend(addresses[:_MOST_TRIED], deadline)
    try:
        return _body(place, backend, trust, rules.most_bytes, shown(url))
    except httpcore2.TimeoutException:
        raise ImageError(f"{shown(url)} was not here within {rules.seconds:g} s; try again, or {INSTEAD}") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise ImageError(f"{shown(url)} {_reason(error)}; check the URL, or {INSTEAD}") from None


def _body(place: WebUrl, backend: PinnedBackend, trust: ssl.SSLContext | None, most_bytes: int, name: str) -> bytes:
    url = httpcore2.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
    headers = [
        ("Host", place.host_header),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        ("User-Agent", "sts-export"),
    ]
    body = bytearray()
    with (
        httpcore2.HTTPConnection(url.origin, ssl_context=trust, network_backend=backend) as connection,
        connection.stream("GET", url, headers=headers) as response,
    ):
        _check(response, most_bytes, name)
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > most_bytes:
                raise too_large(most_bytes)
    return bytes(body)


def _check(response: httpcore2.Response, most_bytes: int, name: str) -> None:
    """Raises ImageError: what follows is not the picture, or too large by its own account."""
    if 300 <= response.status < 400:
        raise ImageError(f"{name} is a redirect, which this server does not follow; give the URL that it leads to")
    if response.status != 200:
        raise ImageError(f"{name} was refused or is missing (no status 200); check the URL, or {INSTEAD}")
    for key, value in response.headers:
        if key.lower() == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise ImageError(f"{name} came compressed (Content-Encoding), which was not asked for; {INSTEAD}")
        if key.lower() == b"content-length" and int(value) > most_bytes:  # a number: httpcore has checked it
            raise too_large(most_bytes)


def _reason(error: Exception) -> str:
    """Of a connection that failed; httpcore hides what TLS said of the certificate behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "has a certificate that this server does not trust for its host"
        cause = cause.__cause__ or cause.__context__
    return "cannot be fetched: its host does not answer, or not as HTTP demands"
