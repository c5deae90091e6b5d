"""Names by which a server may be asked.

A site may let its own name lead to this machine (DNS rebinding): to a browser the server is then a part of that site, whose
pages may read its answers.  Such a request names the site as its Host.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from sts_export.errors import RequestError
from sts_export.serving.pictures.hosts import host_and_port, literal


@dataclass(frozen=True)
class HostRules:
    """What the Host of a request may be, on any port.

    Args:
        names: such as ``vlm.example.org``, ``*.example.org`` (subdomains), ``192.0.2.7``, ``[2001:db8::7]``; with ``*`` any
            Host will do, and none, too.
        loopback: ``localhost`` and every loopback address, too.

    Raises:
        RequestError: a name is malformed.
    """

    names: tuple[str, ...] = ("*",)
    loopback: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            found = host_and_port(name.removeprefix("*."))
            is_address = found is not None and literal(found[0]) is not None
            if name != "*" and (found is None or found[1] is not None or (is_address and name.startswith("*."))):
                raise RequestError(
                    f"{name!r} is no host to be asked by; give a name such as vlm.example.org, an address such as 192.0.2.7 or "
                    "[2001:db8::7], *.example.org for subdomains or * for any, without a port"
                )

    def allow(self, given: list[str]) -> bool:
        """Whether a request may have these Host headers."""
        if "*" in self.names:
            return True
        found = host_and_port(given[0]) if len(given) == 1 else None
        if found is None:
            return False
        host, address = found[0], literal(found[0])
        if self.loopback and (host == "localhost" or (address is not None and address.is_loopback)):
            return True
        return any(_is_named(host, name) for name in self.names)


ANY_HOST = HostRules()


def usual_rules(host: str, address: str) -> HostRules:
    """Where the operator says nothing: only a server for this machine alone knows all of its names.

    Args:
        host: as it was given, a name or an address.
        address: where the server listens because of it.
    """
    if not ip_address(address.partition("%")[0]).is_loopback:
        return ANY_HOST
    found = host_and_port(host)
    return HostRules((host,) if found is not None and found[1] is None else (), loopback=True)


def _is_named(host: str, name: str) -> bool:
    found = host_and_port(name.removeprefix("*."))
    if found is None:
        return False
    return host.endswith(f".{found[0]}") if name.startswith("*.") else host == found[0]
