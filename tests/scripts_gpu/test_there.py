"""What happens on the machine, with a stand-in for scripts/gpu/run; and a whole step, rehearsed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu.carry import rehearse, there
from scripts.gpu.carry.limits import Limits
from scripts.gpu.carry.tree import tree_files

SOURCE = Path(there.__file__)
RUN = """#!/bin/sh
echo "ran $@"
while [ $# -gt 0 ]; do case $1 in
--output) output=$2 ;;
--scratch) touch "$2/weights"; echo "scratch $2" ;;
--sleep) sleep 30 & wait ;;
--fail) exit 7 ;;
esac; shift; done
echo "$PYTHONPATH" >"$output/path"
"""


class Machine:
    """A tree, a store and a folder for what comes back."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.store, self.out = folder / "tree", folder / "home" / "store", folder / "out"
        self.results = self.store / "results"
        script = self.tree / "scripts" / "gpu" / "run"
        (script.parent / "carry").mkdir(parents=True)
        shutil.copy(SOURCE, script.parent / "carry" / "there.py")
        script.write_text(RUN)
        script.chmod(0o755)

    def step(
        self, name: str, files: dict[str, bytes], archives: dict[str, Any], *more: str
    ) -> subprocess.CompletedProcess[str]:
        """Bring these files and run; $OUT is empty and the carried folder new, as on the machine."""
        carried = self.tree / "carried"
        for folder in (carried, self.out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for file, data in files.items():
            (carried / file).write_bytes(data)
        digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        (carried / "contents.json").write_text(json.dumps({"files": digests, "archives": archives}))
        return self.again(name, *more)

    def again(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        options = ["--carried", "carried", "--store", str(self.store), "--out", str(self.out), "--commit", "0123abc"]
        command = [sys.executable, "-I", "scripts/gpu/carry/there.py", name, *options, *more]
        return subprocess.run(command, cwd=self.tree, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> tuple[list[bytes], dict[str, Any]]:
    """A package in two parts."""
    (tmp_path / "package.py").write_text("VALUE = 3")
    with tarfile.open(tmp_path / "site.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "package.py", "site/package.py")
    data = (tmp_path / "site.tar.xz").read_bytes()
    half = len(data) // 2
    facts = {"parts": ["one", "two"], "sha256": hashlib.sha256(data).hexdigest(), "into": "."}
    return [data[:half], data[half:]], {"site.tar.xz": facts}


def test_parts_of_two_steps(machine: Machine, archive: tuple[list[bytes], dict[str, Any]]) -> None:
    """The second completes what the first brought, though that is no longer carried; all results come back."""
    (one, two), archives = archive
    first = machine.step("first", {"one": one}, archives, "--", "--parts", "kernels")
    assert first.returncode == 0, first.stderr
    assert not (machine.store / "site").exists()
    said = first.stdout.splitlines()[0]
    assert "--commit 0123abc" in said and said.endswith("--parts kernels")
    second = machine.step("second", {"two": two}, archives, "--", "--parts", "smoke")
    assert second.returncode == 0, second.stderr
    assert (machine.store / "site" / "package.py").read_text() == "VALUE = 3"
    assert (machine.results / "path").read_text().split(":")[0].strip() == str(machine.store / "site")
    with tarfile.open(machine.out / "results.tar.gz") as tar:
        assert {"results/first.log", "results/second.log", "results/steps.jsonl"} <= set(tar.getnames())
    assert sorted(file.name for file in machine.out.iterdir()) == ["results.tar.gz", "second.log"]
    reports = [json.loads(line) for line in (machine.results / "steps.jsonl").read_text().splitlines()]
    assert [report["unpacked"] for report in reports] == [[], ["site.tar.xz"]]
    assert [report["brought_bytes"] for report in reports] == [len(one), len(two)]


def test_an_archive_in_one_part_of_its_name(machine: Machine, archive: tuple[list[bytes], dict[str, Any]]) -> None:
    data = b"".join(archive[0])
    facts = {"site.tar.xz": {**archive[1]["site.tar.xz"], "parts": ["site.tar.xz"]}}
    assert machine.step("only", {"site.tar.xz": data}, facts).returncode == 0
    assert (machine.store / "site" / "package.py").is_file()
    assert not (machine.results / "only.log").exists()  # nothing was asked for
    os.utime(machine.store / "site" / "package.py", (1, 1))
    assert machine.again("only").returncode == 0
    assert (machine.store / "site" / "package.py").stat().st_mtime == 1  # not unpacked again


def test_what_was_damaged_on_the_way(machine: Machine, archive: tuple[list[bytes], dict[str, Any]]) -> None:
    machine.step("first", {"one": archive[0][0]}, archive[1])
    (machine.tree / "carried" / "one").write_bytes(b"other")
    done = machine.again("first", "--", "--parts", "kernels")
    assert done.returncode == 3 and done.stderr == "there: one is missing or damaged; fill carried again\n"
    assert (machine.out / "results.tar.gz").is_file()


def test_a_run_that_fails_and_one_that_takes_too_long(machine: Machine) -> None:
    """Their exit codes, and what they said comes back."""
    assert machine.step("failing", {}, {}, "--", "--fail").returncode == 7
    assert machine.step("slow", {}, {}, "--limit", "0.3", "--", "--sleep").returncode == 124
    log = (machine.out / "slow.log").read_text()
    assert "ran " in log
    (scratch,) = [line.removeprefix("scratch ") for line in log.splitlines() if line.startswith("scratch ")]
    assert not Path(scratch).exists()  # the weights of a run that was stopped would take the next one's memory
    with tarfile.open(machine.out / "results.tar.gz") as tar:
        assert {"results/failing.log", "results/slow.log"} <= set(tar.getnames())


def test_limits_that_a_step_breaks() -> None:
    limits = Limits(brought=10, seconds=5, characters=20, files=2, file_bytes=100, all_bytes=150, folders=1)
    good = {"a.json": 100, "b/c.log": 50}
    assert rehearse.violations("echo", 10, 5, good, limits) == []
    assert len(rehearse.violations("echo\n" * 5, 11, 6, {"a": 101, "b/c/d": 49, "e f": 1}, limits)) == 9
    assert rehearse.violations("echo", 10, 5, {}, limits) == ["0 files come back"]


def test_a_rehearsal(tmp_path: Path) -> None:
    """The first step's command, as scripts/gpu/rehearse runs it, with a stand-in for the kernels' program."""
    try:
        tree_files()
    except RuntimeError as error:
        pytest.skip(str(error))
    data = tmp_path / "data"
    (data / "binaries").mkdir(parents=True)
    program = data / "binaries" / "check_kernels"
    program.write_text("""#!/bin/sh\n[ "$1" = --host-only ] && echo '{"checks": 5, "failures": []}'\n""")
    program.chmod(0o755)
    pack = tmp_path / "pack"
    pack.mkdir()
    with tarfile.open(pack / "base.tar.xz", "w:xz") as tar:
        tar.add(data / "binaries", "binaries")
    digest = hashlib.sha256((pack / "base.tar.xz").read_bytes()).hexdigest()
    archives = {"base.tar.xz": {"parts": ["base.tar.xz"], "sha256": digest, "into": "."}}
    steps = [{"files": {"base.tar.xz": digest}}]
    (pack / "pack.json").write_text(json.dumps({"steps": steps, "archives": archives, "built_from": "0123abc"}))
    options = [str(pack), "--steps", "1", "--output", str(tmp_path / "log.json"), "--results", str(tmp_path / "results")]
    assert rehearse.main(options) == 0, (tmp_path / "log.json").read_text()
    (step,) = json.loads((tmp_path / "log.json").read_text())["steps"]
    assert step["exit_code"] == 0 and step["violations"] == [] and set(step["files"]) == {"results.tar.gz", "kernels.log"}
    (file,) = (tmp_path / "results").glob("*-toy-kernels.json")
    record = json.loads(file.read_text())
    assert record["build"]["command"] == "brought ready made" and record["checks"]["checks"] == 5
    assert record["commit"] and record["modified"] is False  # there is no git in the tree
