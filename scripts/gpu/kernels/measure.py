"""The kernels on this machine: built, checked against the host's version, sanitized, timed against their floor.

The program that does the work is plugins/kernels/check/check_kernels.cu; it prints one JSON object.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.gpu.kernels.sanitizer import TOOLS, find_sanitizer, sanitize
from scripts.gpu.limits import timings
from scripts.gpu.machine.environment import ROOT
from scripts.gpu.progress import Clock

SOURCES = ROOT / "plugins" / "kernels"
_SANITIZER_S = 110  # for each tool, so that all of them and what comes before fit into ten minutes


def run(
    clock: Clock, save: Callable[[dict[str, Any]], None], *, architecture: str | None, bandwidth: Callable[[], float]
) -> bool:
    """Build, check, time, sanitize.

    Args:
        save: gets the record after every step.
        architecture: of the GPU, such as ``sm_90``; None: the host's version alone, compiled by a plain C++ compiler.
        bandwidth: measures the device's, in bytes per second.

    Returns:
        Whether every check passed; a missing sanitizer is no failure, nor is a slow kernel.
    """
    record: dict[str, Any] = {"build": {}, "checks": {}, "timings": [], "sanitizer": {}}
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "check_kernels"
        clock.say("building check_kernels")
        record["build"] = build(program, clock, architecture=architecture)
        save(record)
        if record["build"]["error"]:
            return False
        on_gpu = architecture is not None
        clock.say("checking and timing" if on_gpu else "checking the host's version")
        printed = check([str(program), *([] if on_gpu else ["--host-only"])], clock)
        record["checks"] = {name: printed.get(name) for name in ("checks", "failures", "error")}
        if measured := printed.get("timings_us"):
            record["copy_bandwidth"] = bandwidth()
            record["timings"] = timings(measured, record["copy_bandwidth"])
        save(record)
        for tool in TOOLS if on_gpu else ():
            clock.say(f"compute-sanitizer, {tool}")
            seconds = min(clock.remaining_s, _SANITIZER_S)
            record["sanitizer"][tool] = sanitize(find_sanitizer(), tool, [str(program), "--checks-only"], seconds)
            save(record)
    return passed(record)


def passed(record: dict[str, Any]) -> bool:
    """Built, every check right, and nothing found by a sanitizer."""
    checks = record["checks"]
    return bool(
        not record["build"]["error"]
        and checks.get("checks")
        and not checks.get("failures")
        and not checks.get("error")
        and all(report["clean"] is not False for report in record["sanitizer"].values())
    )


def compile_command(program: Path, architecture: str | None) -> list[str]:
    """Makes check_kernels.

    Args:
        architecture: of the GPU, such as ``sm_90``; None: the host's version alone.
    """
    host = [str(file) for file in sorted((SOURCES / "host").glob("*.cpp"))]
    main = str(SOURCES / "check" / "check_kernels.cu")
    if architecture is None:
        command = ["g++", "-std=c++17", "-O2", "-x", "c++", main, *host]
    else:
        device = [str(file) for file in sorted(SOURCES.glob("*.cu"))]
        # -lineinfo lets the sanitizer name lines and costs nothing.
        command = ["nvcc", "-std=c++17", "-O3", "-lineinfo", "--threads=0", f"-arch={architecture}", main, *device, *host]
    return [*command, "-o", str(program)]


def build(program: Path, clock: Clock, *, architecture: str | None) -> dict[str, Any]:
    """Run compile_command: the command without folders, seconds, and why it failed if it did."""
    command = compile_command(program, architecture)
    started = time.monotonic()
    error = None
    if shutil.which(command[0]) is None:
        error = f"{command[0]} is not installed"
    else:
        done = _run(command, clock)
        error = None if done.returncode == 0 else (done.stderr or done.stdout)[-1000:]
    shown = [Path(word).name if word.startswith("/") else word for word in command[:-2]]
    return {"command": " ".join(shown), "seconds": time.monotonic() - started, "error": error}


def check(command: Sequence[str], clock: Clock) -> dict[str, Any]:
    """What check_kernels prints, with ``error`` where it printed nothing or stopped without naming a failure."""
    done = _run(command, clock)
    try:
        printed: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        text = (done.stderr or done.stdout).strip()[-1000:]
        return {"error": f"no JSON, exit code {done.returncode}: {text}"}
    if done.returncode and not printed.get("failures"):
        printed["error"] = f"exit code {done.returncode}: {done.stderr.strip()[-1000:]}"
    return printed


def _run(command: Sequence[str], clock: Clock) -> subprocess.CompletedProcess[str]:
    """Out of time is a failure with that text."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(clock.remaining_s, 1.0))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "out of time")
