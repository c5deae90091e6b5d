"""What every fault has to leave behind: a server that answers rightly and has nothing more to do."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.scheduling.gates import PATIENCE, until
from tests.support.scheduling.served import MODEL, Served

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 4}
CHAT = "/v1/chat/completions"
_JSON = {"content-type": "application/json"}


def post(served: Served, body: Any, path: str = CHAT) -> httpx.Response:
    """``body``: JSON, or the bytes themselves.  Python's own JSON has lone surrogates, NaN and infinities."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(served.url + path, content=content, headers=_JSON, timeout=PATIENCE)


def is_refused(response: httpx.Response, *statuses: int) -> str:
    """The line of OpenAI's error object: one, not long, and nobody's fault but the client's."""
    assert response.status_code in (statuses or (400,)), response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert all(body["error"][name] is None or body["error"][name] for name in ("param", "code"))
    message = str(body["error"]["message"])
    assert message and len(message.splitlines()) == 1 and len(message) < 1200
    return message


def is_well(served: Served) -> None:
    """A normal request is answered as by the pipeline alone, and no slot is lost."""
    engine = served.service.engine
    assert engine is not None
    response = post(served, ASKED)
    assert response.status_code == 200, response.text
    wanted = engine.pipeline.generate("Where?", max_new_tokens=4).text
    assert response.json()["choices"][0]["message"]["content"] == wanted
    until(lambda: (served.service.load.running, served.service.load.waiting) == (0, 0))
