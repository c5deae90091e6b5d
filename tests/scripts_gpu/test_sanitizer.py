"""What is read from compute-sanitizer's reports; the texts are in its own form."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from scripts.gpu.kernels.sanitizer import sanitize, verdict

CLEAN = '{"checks": 3}\n========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n'
ERRORS = "========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 2 errors\n"
NO_RACE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
RACE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
REFUSED = "========= COMPUTE-SANITIZER\n========= Error: Device not supported.\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    ("text", "code", "clean"),
    [
        (CLEAN, 0, True),
        (NO_RACE, 0, True),
        (ERRORS, 0, False),
        (RACE, 0, False),
        (ERRORS, 1, False),
        (CLEAN, 1, None),
        (REFUSED, 0, None),
        ("", 0, None),
        ("segmentation fault", 139, None),
    ],
)
def test_verdict(text: str, code: int, clean: bool | None) -> None:
    found, reason = verdict(text, code)
    assert found is clean
    assert (reason is None) == (clean is True)


def test_without_sanitizer() -> None:
    assert sanitize(None, "memcheck", ["true"], 10)["reason"] == "compute-sanitizer is not installed"


def program(folder: Path, body: str) -> str:
    """A fake of compute-sanitizer."""
    file = folder / "compute-sanitizer"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return str(file)


def test_arguments_and_report(tmp_path: Path) -> None:
    fake = program(tmp_path, f'echo "$@" > {tmp_path}/arguments; printf "%s\\n" "========= ERROR SUMMARY: 4 errors"')
    report = sanitize(fake, "initcheck", ["./check", "--checks-only"], 10)
    assert (tmp_path / "arguments").read_text() == "--tool initcheck ./check --checks-only\n"
    assert report["clean"] is False and report["reason"] == "4 errors" and "ERROR SUMMARY" in report["tail"]


def test_time_runs_out(tmp_path: Path) -> None:
    """What it runs ends with it, and what it said is kept."""
    fake = program(tmp_path, f"echo begun; sleep 30 & echo $! > {tmp_path}/child; wait")
    report = sanitize(fake, "racecheck", ["./check"], 3)
    assert report["clean"] is None and report["reason"] == "out of time" and report["tail"] == "begun\n"
    assert report["seconds"] < 20
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    deadline = time.monotonic() + 20  # what is killed closes its files before it ends
    while not _ended(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _ended(child)


def _ended(stat_file: Path) -> bool:
    try:
        return stat_file.read_text().split(") ")[1].startswith("Z")
    except OSError:
        return True
