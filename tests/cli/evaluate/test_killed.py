"""An evaluation that is killed (SIGKILL) at several points, and then goes on: nothing is asked twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sts_export.cli import main
from tests.evaluation.helpers import pope

# The command line, killed with so many answers written: after the last one, in the middle of the next, or before the tables.
_KILLED = """
import os, signal, sys
from sts_export.cli import main
from sts_export.evaluation import journal
from sts_export.evaluation.results import saving
point, count = sys.argv[1], int(sys.argv[2])
append, written = journal.Journal._append, 0
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def appended(self, line):
    global written
    if "id" in line and written == count:
        if point == "torn":
            self._stream.write(b'{"id": "rand')
        if point != "tables":
            kill()
    append(self, line)
    written += "id" in line
journal.Journal._append = appended
if point == "tables":
    saving.replace_json = kill
sys.exit(main(sys.argv[3:]))
"""


def arguments(bundles: Path, data: Path, output: Path) -> list[str]:
    return ["evaluate", str(bundles / "pruned"), "--task", "pope", "--data", str(data), "--threads=1", "-o", str(output)]


def answers(output: Path) -> list[dict[str, Any]]:
    (file,) = (output / "answers").glob("*.jsonl")
    _, *lines = map(json.loads, file.read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "first_token_ms"} for line in lines]


@pytest.mark.parametrize(("point", "count"), [("whole", 1), ("torn", 3), ("tables", 0)])
def test_it_goes_on(bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], point: str, count: int) -> None:
    data, output = pope(tmp_path / "data"), tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, point, str(count), *arguments(bundles, data, output)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = 6 if point == "tables" else count
    assert not (output / "pope.md").exists()
    assert main(arguments(bundles, data, output)) == 0
    assert capsys.readouterr().err == f"note: {there} of 6 answers are there already\n"
    assert main(arguments(bundles, data, tmp_path / "at-once")) == 0
    assert answers(output) == answers(tmp_path / "at-once")
    assert [one["id"] for one in answers(output)] == [
        f"{split}-{n}" for split in ("random", "popular", "adversarial") for n in (1, 2)
    ]
    assert (output / "pope.md").is_file()
