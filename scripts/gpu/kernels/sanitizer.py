"""compute-sanitizer over a program, where there is one and the machine lets it work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.gpu.kernels.programs import Programs
from scripts.gpu.progress import Clock

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# The last line of a report: "ERROR SUMMARY: 0 errors" or "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)".
_SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", re.MULTILINE)


def sanitize_all(
    clock: Clock, save: Callable[[dict[str, Any]], None], programs: Programs, tools: Sequence[str], *, on_gpu: bool
) -> None:
    """check_kernels under each of these tools; each gets its share of the time that is left.

    Args:
        save: gets the record after every tool.
    """
    record: dict[str, Any] = {"build": programs.build, "sanitizer": {}}
    save(record)
    if programs.check is None:
        return
    command = [str(programs.check), "--checks-only", *([] if on_gpu else ["--host-only"])]
    for index, tool in enumerate(tools):
        clock.say(f"compute-sanitizer, {tool}")
        record["sanitizer"][tool] = sanitize(find_sanitizer(), tool, command, clock.remaining_s / (len(tools) - index))
        save(record)


def find_sanitizer() -> str | None:
    """On the path, or where nvcc is."""
    nvcc = shutil.which("nvcc")
    beside = str(Path(nvcc).resolve().parent) if nvcc else None
    return shutil.which("compute-sanitizer") or (shutil.which("compute-sanitizer", path=beside) if beside else None)


def sanitize(program: str | None, tool: str, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run ``command`` under one tool of compute-sanitizer.

    Args:
        program: of compute-sanitizer; None if it is not installed.

    Returns:
        ``clean``: True or False as its summary says, None if it came to none; ``reason`` for that; ``seconds``; ``tail``:
        the end of what it printed, unless clean.
    """
    if program is None:
        return {"clean": None, "reason": "compute-sanitizer is not installed", "seconds": 0.0, "tail": ""}
    started = time.monotonic()
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([program, "--tool", tool, *command], process_group=0, **piped)
    try:
        text, _ = process.communicate(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it runs, which would take the next tool's time
        text, _ = process.communicate()
        return {"clean": None, "reason": "out of time", "seconds": time.monotonic() - started, "tail": text[-2000:]}
    clean, reason = verdict(text, process.returncode)
    return {"clean": clean, "reason": reason, "seconds": time.monotonic() - started, "tail": "" if clean else text[-2000:]}


def verdict(text: str, code: int) -> tuple[bool | None, str | None]:
    """Whether a report is clean, or None and the reason where it says nothing.

    Args:
        text: what compute-sanitizer printed.
        code: its exit code, the program's own where it found nothing.
    """
    summary = _SUMMARY.search(text)
    if "Device not supported" in text:
        return None, "compute-sanitizer does not support this device"
    if summary is None:
        return None, f"no summary; exit code {code}"
    if int(summary[1]):
        return False, f"{summary[1]} errors"
    return (True, None) if code == 0 else (None, f"the program failed with exit code {code}")
