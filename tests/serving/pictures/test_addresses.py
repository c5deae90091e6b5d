"""Only addresses of the public internet are public."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.serving.pictures.addresses import is_public, resolved

# The registries of special-purpose addresses of IANA (those not globally reachable), with multicast and reserved ranges.
SPECIAL_IPV4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
SPECIAL_IPV6 = [
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450::1"]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are(text: str) -> None:
    assert is_public(ip_address(text))


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(SPECIAL_IPV4).map(IPv4Network), st.integers(0, 2**32 - 1))
def test_special_ipv4_addresses_are_not(network: IPv4Network, offset: int) -> None:
    assert not is_public(network[offset % network.num_addresses])


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(SPECIAL_IPV6).map(IPv6Network), st.integers(0, 2**128 - 1))
def test_special_ipv6_addresses_are_not(network: IPv6Network, offset: int) -> None:
    assert not is_public(network[offset % network.num_addresses])


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_in_ipv6_form_is_not_whatever_it_holds(number: int) -> None:
    host = str(IPv4Address(number))
    assert not is_public(ip_address(f"::ffff:{host}"))
    assert not is_public(ip_address(f"64:ff9b::{host}"))
    assert not is_public(ip_address(f"::{host}"))
    assert not is_public(IPv6Address((0x2002 << 112) | (number << 80) | 1))  # 6to4
    assert not is_public(IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF)))  # Teredo


@pytest.mark.parametrize("text", ["169.254.169.254", "192.0.0.192", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"])
def test_the_places_of_secrets_in_clouds_are_not(text: str) -> None:
    assert not is_public(ip_address(text))


def test_scoped_addresses_are_not() -> None:
    assert not is_public(ip_address("fe80::1%1"))


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "2130706433", "0x7f.1", "0177.0.0.1"])
def test_numbers_resolve_without_a_network_and_are_refused(name: str) -> None:
    """Resolvers differ: some find loopback, some nothing."""
    assert not any(map(is_public, resolved(name)))
    assert {str(address) for address in resolved(name)} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("name", ["a" * 64, "a..b", "\ud800", "a\0b"])
def test_what_no_resolver_takes_has_no_address(name: str) -> None:
    assert resolved(name) == ()
