"""Which addresses pictures may be fetched from: those of the public internet, and nothing that leads elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Resolver = Callable[[str], tuple[Address, ...]]

# Not all of these are private to every release of Python's ipaddress.
_OTHER_IPV4 = (
    IPv4Network("192.0.0.0/24"),  # IETF protocols; Oracle's cloud keeps a machine's secrets at 192.0.0.192
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv4Network("168.63.129.16/32"),  # Azure's platform: reached from its machines only, though the address is public
)
# What is outside is not routed: loopback, link-local, unique local, multicast, and IPv4 addresses in IPv6 form (::ffff:0:0/96,
# ::/96, and 64:ff9b::/96 of NAT64, behind which may be private ones).
_UNICAST_IPV6 = IPv6Network("2000::/3")
_OTHER_IPV6 = (
    IPv6Network("2001::/23"),  # IETF protocols; Teredo, which holds IPv4 addresses
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4, which holds IPv4 addresses
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: Address) -> bool:
    """Whether an address is one of a machine on the public internet.

    By the registries of special-purpose addresses of IANA (RFC 6890), and stricter: an IPv6 address that holds an IPv4 one
    is refused whatever it holds.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in network for network in _OTHER_IPV4)
    return address in _UNICAST_IPV6 and address.is_global and not any(address in network for network in _OTHER_IPV6)


def resolved(name: str) -> tuple[Address, ...]:
    """Every address that the system's resolver knows of a host; none where it knows none.

    How long that takes is up to the resolver's own limits.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))
