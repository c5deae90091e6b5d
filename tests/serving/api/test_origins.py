"""What a browser can be made to send by pages that are not the server's: other Hosts, other origins."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from sts_export.serving.hosts import HostRules
from sts_export.serving.settings import Settings
from tests.serving.faults.answers import ASKED, CHAT, is_refused, is_well
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.served import MODEL, Served, Start

LOCAL = HostRules((), loopback=True)
PATHS = ("/", "/page/page.js", "/page/info", "/health", "/metrics", "/v1/models", "/openapi.json", "/nothing")


def post(served: Served, **headers: str) -> httpx.Response:
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(served.url + CHAT, content=json.dumps(ASKED), headers=given, timeout=PATIENCE)


def answered(served: Served) -> float:
    return served.metric("sts_request_success_total")


def test_a_name_that_was_made_to_lead_here(start: Start) -> None:
    """Nothing is told under it, and nothing done."""
    served = start(settings=Settings(MODEL, hosts=LOCAL))
    for path in PATHS:
        response = httpx.get(served.url + path, headers={"host": "evil.test:8080"}, timeout=PATIENCE)
        assert "'evil.test:8080'; ask it by its own name" in is_refused(response) and response.headers["x-request-id"]
        assert response.json()["error"]["code"] == "wrong_host"
    is_refused(post(served, host="evil.test"))
    is_refused(post(served, host="evil.test", origin="http://evil.test", sec_fetch_site="same-origin"))
    assert answered(served) == 0
    is_well(served)
    assert post(served, host="localhost:1234").status_code == 200


@pytest.mark.parametrize("lines", ["", "Host:\r\n", "Host: a b\r\n", "Host: " + "a" * 5000 + "\r\n"])
def test_no_host_or_none_that_can_be_one(start: Start, lines: str) -> None:
    served = start(settings=Settings(MODEL, hosts=LOCAL))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
        sock.sendall(f"GET /health HTTP/1.0\r\n{lines}\r\n".encode())
        with sock.makefile("rb") as answer:
            head, _, content = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    message = json.loads(content)["error"]["message"]
    assert message.startswith("this server is not asked by ") and len(message) < 250


def test_any_host_where_the_operator_says_nothing(served: Served) -> None:
    for host in ("evil.test", "192.0.2.7:99"):
        assert httpx.get(served.url + "/health", headers={"host": host}, timeout=PATIENCE).status_code == 200


OURS: list[dict[str, str]] = [
    {},  # no browser
    {"sec_fetch_site": "same-origin", "origin": "http://vlm.example.org", "host": "vlm.example.org"},
    {"sec_fetch_site": "same-origin", "origin": "https://vlm.example.org", "host": "10.0.0.7:8080"},  # a proxy changed the Host
    {"sec_fetch_site": "none"},
    {"origin": "http://vlm.example.org:8080", "host": "vlm.example.org:8080"},
    {"origin": "https://vlm.example.org", "host": "VLM.example.org"},  # a proxy with TLS
]
THEIRS: list[dict[str, str]] = [
    {"sec_fetch_site": "cross-site", "origin": "https://evil.test"},
    {"sec_fetch_site": "same-site", "origin": "http://localhost:3000", "host": "localhost:8080"},
    {"sec_fetch_site": "cross-site"},
    {"origin": "https://evil.test"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://localhost:3000", "host": "localhost:8080"},
    {"origin": "http://vlm.example.org.evil.test", "host": "vlm.example.org"},
]


@pytest.mark.parametrize("headers", OURS)
def test_this_servers_page_and_other_clients(served: Served, headers: dict[str, str]) -> None:
    assert post(served, **headers).status_code == 200


@pytest.mark.parametrize("headers", THEIRS)
@pytest.mark.parametrize("media", ["application/json", "text/plain"])
def test_pages_of_other_sites(start: Start, headers: dict[str, str], media: str) -> None:
    """They may send text without asking, and JSON where a browser asks too little: neither makes the server work."""
    served = start()
    response = post(served, **headers, content_type=media)
    assert "a page of another site" in is_refused(response, 403) and response.json()["error"]["code"] == "foreign_site"
    assert answered(served) == 0
    got: Any = {name.replace("_", "-"): value for name, value in headers.items()}
    assert httpx.get(served.url + "/", headers=got, timeout=PATIENCE).status_code == 200  # a link from there


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_forms_are_no_requests(start: Start, media: str) -> None:
    """Of old browsers, too, which send neither header with them."""
    served = start()
    is_refused(post(served, content_type=media), 415)
    assert answered(served) == 0
