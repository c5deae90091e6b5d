"""An engine whose steps the test lets through, and waiting for what another thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.errors import BackendError
from tests.support.mixed_requests import Opened

PATIENCE = 60.0  # seconds until a test that waits has failed


class Gate:
    """A backend whose steps wait to be let through."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: list[str] = []
        self.error: BackendError | None = None
        self._open = threading.Event()
        self._single = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, graph: str, *args: Any, **options: Any) -> Any:
        if graph == "llm_lower":
            self.calls.append("prefill")
        return self._backend.run(graph, *args, **options)

    def decode(self, *args: Any) -> Any:
        assert self._open.is_set() or self._single.acquire(timeout=PATIENCE)
        self.calls.append("step")
        if self.error is not None:
            raise self.error
        return self._backend.decode(*args)

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self._single.release()

    def open(self) -> None:
        self._open.set()
        self._single.release()


@pytest.fixture
def gated(opened: Opened) -> Iterator[tuple[Pipeline, Gate]]:
    """A pipeline of LLaVA whose steps the test lets through."""
    with Pipeline(opened("llava").bundle.folder, threads=1) as vlm:
        gate: Any = Gate(vlm._backend)
        vlm._backend = vlm._graphs._backend = gate
        yield vlm, gate
        gate.open()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
