"""The chunks of a streamed answer, as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import httpx


def chunks(client: httpx.Client, address: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
    """Closing this gives the answer up.

    Raises:
        ValueError: the server refuses, or its answer breaks off with an error.
    """
    with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}: {response.read()[:200]!r}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise ValueError(f"the answer broke off: {chunk['error']}")
            yield chunk


def piece(chunk: dict[str, Any]) -> str:
    """Text of a chunk; empty where it has none."""
    return (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""
