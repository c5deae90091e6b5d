"""How long a request counts as one of those that may be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from sts_export import Pipeline
from sts_export.errors import BackendError
from sts_export.serving.settings import Settings
from tests.serving.faults.answers import ASKED, CHAT, is_refused, post
from tests.support.scheduling.gates import PATIENCE, Gate, until
from tests.support.scheduling.served import MODEL, Served, Start

ONE = Settings(MODEL, most_admitted=1)
STREAMED: dict[str, Any] = {**ASKED, "stream": True}


def is_full(served: Served) -> bool:
    response = post(served, ASKED)
    return response.status_code == 429 and "1 requests are here already" in is_refused(response, 429)


@contextmanager
def begun(served: Served) -> Iterator[Iterator[str]]:
    """Further lines of a stream whose first token is there, and which has the only place."""
    with httpx.stream("POST", served.url + CHAT, json=STREAMED, timeout=PATIENCE) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        assert is_full(served)
        yield lines


def test_a_stream_counts_until_its_end(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    vlm, gate = gated
    served = start(vlm, settings=ONE)
    with begun(served) as lines:
        gate.open()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert post(served, ASKED).status_code == 200


def test_a_stream_counts_until_its_client_is_gone(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    vlm, gate = gated
    served = start(vlm, settings=ONE)
    with begun(served):
        pass
    gate.open()
    until(lambda: post(served, ASKED).status_code == 200)


def test_a_stream_counts_until_it_fails(start: Start, gated: tuple[Pipeline, Gate]) -> None:
    vlm, gate = gated
    served = start(vlm, settings=ONE)
    with begun(served) as lines:
        gate.error = BackendError("out of memory; try again")
        gate.open()
        assert "out of memory" in list(lines)[-2]
    gate.error = None
    assert post(served, ASKED).status_code == 200


@pytest.mark.parametrize("body", [STREAMED, ASKED])
def test_one_after_the_other(start: Start, body: dict[str, Any]) -> None:
    """Whoever has an answer may send the next request at once, on the same connection."""
    served = start(settings=ONE)
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
        assert {client.post(CHAT, json=body).status_code for _ in range(100)} == {200}
