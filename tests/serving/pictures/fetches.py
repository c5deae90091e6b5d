"""Fetches whose resolver and permitted addresses are a test's own."""

from __future__ import annotations

import ssl
from ipaddress import ip_address

from sts_export.serving.pictures.addresses import Address
from sts_export.serving.pictures.fetching import fetched
from sts_export.serving.pictures.rules import PictureRules

# Longer than any machine needs: what has to end for another reason must not end for this one.
PATIENT = 120.0


class Names:
    """A resolver: names to addresses.  ``asked`` are the names that it was asked for."""

    def __init__(self, **addresses: tuple[str, ...]) -> None:
        self.asked: list[str] = []
        self._addresses = {name.replace("_", "."): found for name, found in addresses.items()}

    def __call__(self, name: str) -> tuple[Address, ...]:
        self.asked.append(name)
        return tuple(map(ip_address, self._addresses.get(name, ())))


def is_loopback(address: Address) -> bool:
    return address.is_loopback


def fetch_here(
    url: str,
    *,
    names: Names | None = None,
    most_bytes: int = 1 << 20,
    seconds: float = PATIENT,
    trust: ssl.SSLContext | None = None,
    port: int | None = None,
) -> bytes:
    """From a server on loopback, at any port; images.test is one."""
    names = Names(images_test=("127.0.0.1",)) if names is None else names
    port = int(url.split("/")[2].rpartition(":")[2]) if port is None else port
    rules = PictureRules(hosts=(f"*:{port}",), most_bytes=most_bytes, seconds=seconds)
    return fetched(url, rules, resolve=names, permitted=is_loopback, trust=trust)
