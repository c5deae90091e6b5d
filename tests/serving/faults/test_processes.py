"""What a server in a process of its own takes of the machine, and that it gives it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.faults.answers import ASKED, CHAT, is_refused
from tests.serving.faults.bombs import asks, black_png, data
from tests.support.mixed_requests import REQUESTS, Opened, alone
from tests.support.scheduling.gates import PATIENCE, until
from tests.support.scheduling.served import MODEL, chat

MIB = 1 << 20
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Apart:
    """A server in another process."""

    url: str
    process: psutil.Process

    def metric(self, name: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=PATIENCE).text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    @property
    def memory(self) -> int:
        return int(self.process.memory_info().rss)

    @contextmanager
    def watched(self) -> Iterator[list[int]]:
        """Bytes of memory, again and again while the block runs."""
        found, over = [self.memory], threading.Event()

        def watch() -> None:
            while not over.wait(0.005):
                found.append(self.memory)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()

    def is_well(self, wanted: str) -> None:
        response = httpx.post(self.url + CHAT, json=ASKED, timeout=PATIENCE)
        assert response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == wanted
        for name in ("running", "waiting"):
            until(lambda name=name: self.metric(f"sts_num_requests_{name}") == 0)  # type: ignore[misc]


@pytest.fixture
def apart(opened: Opened, tmp_path: Path) -> Iterator[Apart]:
    bundle, log = opened("llava").bundle.folder, tmp_path / "log"
    options = ["--port", "0", "--threads", "1", "--model-name", MODEL, "--slots", "3", "--most-waiting", "20"]
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "sts_export.cli", "serve", str(bundle), *options], stderr=stream)
    try:
        until(lambda: '"ready"' in log.read_text() or process.poll() is not None)
        ready = next(line for line in map(json.loads, log.read_text().splitlines()) if line["message"] == "ready")
        yield Apart(ready["address"], psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait(PATIENCE)
    assert "Traceback" not in log.read_text()


@pytest.fixture
def wanted(opened: Opened) -> str:
    return opened("llava").generate("Where?", max_new_tokens=4).text


@pytest.mark.slow
def test_memory_has_bounds(apart: Apart, wanted: str) -> None:
    """100 MB in a body that does not say its length, and 900 million pixels in 110 kB."""
    apart.is_well(wanted)
    before = apart.memory
    with apart.watched() as memory:
        pieces = (b" " * MIB for _ in range(100))
        is_refused(httpx.post(apart.url + CHAT, content=pieces, headers=JSON, timeout=PATIENCE), 413)
    assert max(memory) - before < 80 * MIB
    bomb = asks(data(black_png(30_000, 30_000)))
    with apart.watched() as memory:
        is_refused(httpx.post(apart.url + CHAT, json=bomb, timeout=PATIENCE))
    assert max(memory) - before < 80 * MIB
    apart.is_well(wanted)


def ask(apart: Apart, number: int, answers: list[str]) -> None:
    """One of many kinds, by its number: a third is wrong, a third leaves early."""
    index = number % len(REQUESTS)
    body: dict[str, Any] = {"model": MODEL, "messages": chat(*REQUESTS[index])}
    kind = number % 9
    if kind in (0, 1, 2):
        changes: list[dict[str, Any]] = [{"temperature": -1}, {"model": "other"}, asks("data:image/png;base64,AAAA")]
        is_refused(httpx.post(apart.url + CHAT, json={**body, **changes[kind]}, timeout=PATIENCE), 400, 404)
    elif kind in (3, 4):
        body |= {"stream": True, "ignore_eos": True}
        with httpx.stream("POST", apart.url + CHAT, json=body, timeout=PATIENCE) as stream:
            next(stream.iter_lines())
    elif kind == 5:
        with suppress(httpx.TimeoutException):  # whoever has so little patience goes away before any answer
            httpx.post(apart.url + CHAT, json=body, timeout=httpx.Timeout(PATIENCE, read=1e-4))
    else:
        response = httpx.post(apart.url + CHAT, json=body, timeout=PATIENCE)
        assert response.json()["choices"][0]["message"]["content"] == answers[index]


@pytest.mark.slow
def test_nothing_is_lost_after_300_requests(apart: Apart, opened: Opened, wanted: str) -> None:
    answers = [result.text for result in alone(opened("llava"))]
    with ThreadPoolExecutor(4) as pool:

        def ask_all(numbers: range) -> None:
            for future in [pool.submit(ask, apart, number, answers) for number in numbers]:
                future.result()

        ask_all(range(20))  # the threads that it keeps are there
        apart.is_well(wanted)
        files, threads = apart.process.num_fds(), apart.process.num_threads()
        ask_all(range(20, 100))
        apart.is_well(wanted)
        memory = apart.memory
        ask_all(range(100, 300))
    apart.is_well(wanted)
    until(lambda: apart.process.num_fds() <= files)
    assert apart.process.num_threads() <= threads + (os.cpu_count() or 1)  # those that decode pictures come and go
    assert apart.memory - memory < 60 * MIB
    assert apart.metric("sts_requests_failed_total") == apart.metric("sts_requests_rejected_total") == 0
    with ThreadPoolExecutor(3) as pool:  # all three slots are there still
        list(pool.map(lambda _: apart.is_well(wanted), range(3)))
