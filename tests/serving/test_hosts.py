"""Names by which a server may be asked: those of this machine, those that an operator gives, any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.errors import RequestError
from sts_export.serving.hosts import HostRules, usual_rules
from sts_export.serving.server import Place

OWN = ["localhost", "LOCALHOST", "localhost.", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "127.3.2.1", "[::1]", "[::1]:8080"]
OTHERS = [
    "evil.test",
    "evil.test:8080",
    "localhost.evil.test",
    "notlocalhost",
    "127.0.0.1.evil.test",
    "192.0.2.7",
    "[2001:db8::7]",
    "user@localhost",
    "localhost@evil.test",
    "localhost/",
    "localhost:80:80",
    "localhost:99999",
    "2130706433",
    "0x7f.1",
    "::1",
    "[::1%25lo]",
    "",
    " ",
    "local host",
    "\xe9",
]


@pytest.mark.parametrize("place", [Place(), Place("127.9.9.9"), Place("localhost")])
def test_a_server_for_this_machine(place: Place) -> None:
    rules = place.hosts
    assert [host for host in OWN if not rules.allow([host])] == []
    assert [host for host in OTHERS if rules.allow([host])] == []
    for wrong in ([], ["localhost", "localhost"], ["localhost", "evil.test"]):
        assert not rules.allow(wrong)


def test_the_name_that_it_listens_by() -> None:
    """Such as the machine's own name, which Debian lets lead to 127.0.1.1."""
    rules = usual_rules("box.example.org", "127.0.1.1")
    assert rules.allow(["box.example.org:8080"]) and rules.allow(["127.0.1.1"]) and not rules.allow(["example.org"])
    assert usual_rules("::1", "::1").allow(["[::1]:8080"])


PUBLIC = [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("a.test", "192.0.2.7"), ("fe80::1%lo", "fe80::1%lo")]


@pytest.mark.parametrize("host, address", PUBLIC)
def test_a_server_for_others(host: str, address: str) -> None:
    """It does not know its names."""
    rules = usual_rules(host, address)
    assert all(rules.allow([one]) for one in (*OWN, *OTHERS)) and rules.allow([])


def test_names_that_an_operator_gives() -> None:
    rules = HostRules(("vlm.example.org", "*.inner.test", "192.0.2.7", "[2001:db8::7]", "münchen.example"))
    for host in ("vlm.example.org", "VLM.example.org:443", "a.inner.test", "a.b.inner.test", "192.0.2.7:1", "[2001:DB8:0::7]"):
        assert rules.allow([host])
    assert rules.allow(["xn--mnchen-3ya.example"])
    for host in ("example.org", "a.vlm.example.org", "inner.test", "xinner.test", "192.0.2.8", "localhost", "127.0.0.1"):
        assert not rules.allow([host])
    assert HostRules(("a.test", "*")).allow([])


@given(host=st.text())
def test_any_text_as_host(host: str) -> None:
    """What is allowed begins with a name of this machine, whatever follows."""
    if HostRules((), loopback=True).allow([host]):
        assert host.lower().startswith(("localhost", "127.", "[")) and "@" not in host and "/" not in host


@pytest.mark.parametrize(
    "name", ["", "a b", "a.test:8080", "http://a.test", "*.*.test", "a.*", "*.192.0.2.7", "**", "::1", "[x]", "a/b", "\ud800"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(RequestError, match="is no host to be asked by; give a name"):
        HostRules(("good.test", name))
