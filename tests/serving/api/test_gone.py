"""Clients that leave before their request is in the scheduler: nothing more is done for them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from anyio import CapacityLimiter, to_thread
from PIL import Image

from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.serving.api.gone import unless_gone
from sts_export.serving.problems import ProblemError
from sts_export.serving.service import Engine, Service
from sts_export.serving.settings import Settings
from tests.serving.faults.answers import ASKED, CHAT, is_well
from tests.support.mixed_requests import SQUARE, Opened
from tests.support.scheduling.gates import PATIENCE, until
from tests.support.scheduling.served import MODEL, Served, running_with


class Left:
    """A request whose client leaves when it is told to."""

    def __init__(self) -> None:
        self._left = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}


def test_work_that_is_wanted() -> None:
    async def work() -> int:
        return 7

    async def failing() -> int:
        raise ZeroDivisionError

    async def both() -> None:
        request: Any = Left()
        assert await unless_gone(request, work()) == 7
        with pytest.raises(ZeroDivisionError):
            await unless_gone(request, failing())

    asyncio.run(both())


def test_a_thread_that_waits_does_not_start_and_one_that_runs_is_waited_for() -> None:
    started, go_on = threading.Semaphore(0), threading.Event()
    calls = []

    def work(name: str) -> str:
        calls.append(name)
        started.release()
        assert go_on.wait(PATIENCE)
        return name

    async def three() -> None:
        limiter = CapacityLimiter(1)
        requests: list[Any] = [Left() for _ in range(3)]
        tasks = []
        for name, request in zip("abc", requests, strict=True):
            tasks.append(asyncio.create_task(unless_gone(request, to_thread.run_sync(work, name, limiter=limiter))))
            while not (calls and limiter.statistics().tasks_waiting == len(tasks) - 1):
                await asyncio.sleep(0)
        requests[0].leave()
        requests[1].leave()
        with pytest.raises(ProblemError, match="went away"):
            await tasks[1]
        assert limiter.borrowed_tokens == 1 and not tasks[0].done()  # its thread goes on, and keeps its place
        go_on.set()
        with pytest.raises(ProblemError, match="went away"):
            await tasks[0]
        assert await tasks[2] == "c"

    asyncio.run(three())
    assert calls == ["a", "c"]


class Hosts:
    """Where pictures come from; each waits to be let through."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def picture(self, url: str) -> bytes:
        self.asked.append(url)
        assert self.go_on.wait(PATIENCE)
        return _png(SQUARE)


@contextmanager
def asking(served: Served, *urls: str) -> Iterator[None]:
    """A client that waits for an answer, and leaves at the block's end."""
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]
    content = json.dumps({**ASKED, "messages": messages}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\nContent-Type: application/json\r\n\r\n"
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
        sock.sendall(head.encode() + content)
        yield


def left(served: Served) -> float:
    return served.metric("sts_http_responses_total", route=CHAT, status="499")


def test_the_next_picture_is_not_fetched(opened: Opened) -> None:
    vlm, hosts = opened("llava"), Hosts()
    with Scheduler(vlm, slots=1) as scheduler, ExitStack() as stack:
        served = stack.enter_context(running_with(Service(Settings(MODEL), Engine(vlm, scheduler)), hosts.picture))
        with asking(served, "a", "b"):
            until(lambda: hosts.asked == ["a"])
        for _ in range(5):  # the server's only loop has seen it when requests that came later are answered
            served.metric("none")
        hosts.go_on.set()
        until(lambda: left(served) == 1)
        assert hosts.asked == ["a"]
        is_well(served)


def test_what_waits_to_be_prepared_is_not_prepared(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are decoded for clients who are there; nothing of the others is submitted."""
    vlm, go_on = opened("llava"), threading.Event()
    prepared: list[Any] = []
    original = vlm.prepare

    def prepare(*args: Any, **options: Any) -> Any:
        prepared.append(args)
        assert go_on.wait(PATIENCE)
        return original(*args, **options)

    file = _png(SQUARE)
    processors = os.cpu_count() or 1
    with Scheduler(vlm, slots=1) as scheduler, ExitStack() as stack:
        served = stack.enter_context(running_with(Service(Settings(MODEL), Engine(vlm, scheduler)), lambda url: file))
        monkeypatch.setattr(vlm, "prepare", prepare)
        with ExitStack() as clients:
            for number in range(processors):
                clients.enter_context(asking(served, "a"))
                until(lambda number=number: len(prepared) == number + 1)  # type: ignore[misc]
            for _ in range(3):
                clients.enter_context(asking(served, "a"))
            until(lambda: served.service._admitted == processors + 3)
        until(lambda: left(served) == 3)  # those that waited: at once
        assert len(prepared) == processors
        go_on.set()
        until(lambda: left(served) == processors + 3)
        assert len(prepared) == processors
        assert served.metric("sts_requests_cancelled_total") == 0  # not one was submitted
        monkeypatch.undo()
        is_well(served)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
