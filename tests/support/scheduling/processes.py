"""`sts-export serve` in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address as its log says it."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process, ready_line(process)["address"]
    finally:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        if (found := json.loads(line))["message"] == "ready":
            return dict(found)
    raise AssertionError("the server ended")
