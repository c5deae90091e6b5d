"""A server, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[2]
REUSES = {
    "none": ["--feature-cache", "0", "--no-prefix-reuse"],
    "pictures": ["--no-prefix-reuse"],  # what the first two graphs made of them
    "all": [],
}


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, from the time it says on the standard error that it is ready."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True, cwd=_ROOT)
        try:
            yield process, _address(process, Path(f"/proc/self/fd/{log.fileno()}"))
        finally:
            process.terminate()
            process.wait()


def served(bundle: Path, model: str, slots: int, *, reuse: str) -> list[str]:
    """Command of a server of ours; ``reuse``: one of ``REUSES``, what it may keep of past requests."""
    options = ["--port", "0", "--model-name", model, "--slots", str(slots), *REUSES[reuse]]
    return [sys.executable, "-m", "sts_export.cli", "serve", str(bundle), *options]


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    own = psutil.Process(pid)
    return float(sum(one.memory_info().rss for one in (own, *own.children(recursive=True))) / 2**20)


def pss_mb(pid: int) -> float:
    """As :func:`rss_mb`, but what they share is counted once."""
    own = psutil.Process(pid)
    return float(sum(one.memory_full_info().pss for one in (own, *own.children(recursive=True))) / 2**20)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and line.endswith("}") and (found := json.loads(line))["message"] == "ready":
                return str(found["address"])
        time.sleep(0.05)
    raise RuntimeError(f"the server ended: {log.read_text()[-500:]}")
