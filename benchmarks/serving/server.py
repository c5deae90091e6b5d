"""The server, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def started(bundle: Path, options: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, from the time it is ready."""
    command = [sys.executable, "-m", "sts_export.cli", "serve", str(bundle), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            yield process, _address(process, Path(f"/proc/self/fd/{log.fileno()}"))
        finally:
            process.terminate()
            process.wait()


def rss_mb(process: subprocess.Popen[str]) -> float:
    """Resident memory of it and its children."""
    own = psutil.Process(process.pid)
    return float(sum(one.memory_info().rss for one in (own, *own.children(recursive=True))) / 2**20)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if line.endswith("}") and (found := json.loads(line))["message"] == "ready":
                return str(found["address"])
    raise RuntimeError(f"the server ended: {log.read_text()[-500:]}")
