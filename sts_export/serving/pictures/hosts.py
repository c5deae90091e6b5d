"""Hosts: one spelling for each, and which of them an operator allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from sts_export.errors import RequestError
from sts_export.serving.pictures.addresses import Address, is_public

WEB_PORTS = (80, 443)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MOST_CHARACTERS = 253  # of a name in the DNS
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class AllowedHost:
    """An entry of the operator's list.

    Args:
        name: of the host, or of the domain; empty: any.
        subdomains: the hosts below the name and not itself.
        port: the only one; None: those of HTTP and HTTPS.
    """

    name: str
    subdomains: bool
    port: int | None

    def allows(self, host: str, port: int) -> bool:
        named = host.endswith(f".{self.name}") if self.subdomains else self.name in ("", host)
        return named and (port in WEB_PORTS if self.port is None else port == self.port)


def check_hosts(hosts: tuple[str, ...]) -> tuple[AllowedHost, ...]:
    """The entries of ``--allow-image-hosts``, read.

    Args:
        hosts: such as ``images.example.org``, ``*.example.org`` (subdomains), ``*`` (every public host), each with ``:PORT``
            where it is another than 80 and 443.

    Raises:
        RequestError: an entry is malformed, or an address that is not public.
    """
    return tuple(map(_allowed_host, hosts))


def host_and_port(text: str) -> tuple[str, int | None] | None:
    """``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port`` -> the host in the one spelling, and the port.

    Names are in lower case and ASCII (IDNA 2008 with the mapping of UTS 46) and without the root's dot, IPv6 addresses
    compressed and without brackets.  None: malformed, or a number that some resolvers would take for an IPv4 address.
    """
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        return None
    host = _ipv6(match[1][1:-1]) if match[1].startswith("[") else _name(match[1])
    port = None if match[2] is None else int(match[2])
    return None if host is None or (port is not None and not 1 <= port <= 65535) else (host, port)


def literal(host: str) -> Address | None:
    """The address that a host is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _ipv6(text: str) -> str | None:
    try:
        address = IPv6Address(text)
    except ValueError:
        return None
    return None if address.scope_id is not None else str(address)


def _name(text: str) -> str | None:
    if len(text) > _MOST_CHARACTERS + 1:
        return None
    name = (text if text.isascii() else _ascii(text)).lower().removesuffix(".")
    if len(name) > _MOST_CHARACTERS or not _NAME.fullmatch(name):
        return None
    # 2130706433, 0x7f.1 and 0177.0.0.1 are loopback to many resolvers; RFC 3986 and ipaddress know four decimal numbers only.
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            return None
    return name


def _ascii(text: str) -> str:
    """Empty where the name has no such form."""
    import idna

    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except UnicodeError:
        return ""


def _allowed_host(entry: str) -> AllowedHost:
    malformed = RequestError(
        f"{entry!r} is no host to allow; give a name such as images.example.org, *.example.org for its subdomains or * for"
        " every public host, and :PORT after it for another port than 80 and 443"
    )
    subdomains = entry.startswith("*.")
    if re.fullmatch(r"\*(:[0-9]+)?", entry):
        found = host_and_port(f"any{entry[1:]}")
        if found is None:
            raise malformed
        return AllowedHost("", False, found[1])
    found = host_and_port(entry[2:] if subdomains else entry)
    if found is None:
        raise malformed
    address = literal(found[0])
    if address is not None and subdomains:
        raise malformed
    if address is not None and not is_public(address):
        raise RequestError(f"{entry!r} is no public address, and pictures come from no other; serve them from a folder")
    return AllowedHost(found[0], subdomains, found[1])
