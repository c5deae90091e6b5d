"""Staging folders: what killed processes left is removed, what a living one writes is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sts_export.errors import OutputError
from sts_export.exporting.staging import remove_abandoned, staging

# Stages an output in a process of its own, says so, and waits to be killed or told to go on.
_WRITER = """
import sys
from pathlib import Path
from sts_export.errors import OutputError
from sts_export.exporting.staging import staging
with staging(Path(sys.argv[1]), replace=True) as folder:
    (folder / "half").write_text("half")
    print(folder.name, flush=True)
    sys.stdin.readline()
"""
# The same, killed between the two renames of a replacement.
_KILLED_REPLACER = """
import os, signal, sys
from pathlib import Path
from sts_export.errors import OutputError
from sts_export.exporting.staging import staging
with staging(Path(sys.argv[1]), replace=True) as folder:
    (folder / "new").write_text("new")
    replace = os.replace
    def killed(source, target):
        replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = killed
"""


@contextmanager
def writer(output: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that is in the middle of writing ``output``, and its staging folder."""
    command = [sys.executable, "-c", _WRITER, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, output.parent / process.stdout.readline().strip()
        finally:
            process.kill()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def write(output: Path, text: str = "whole", *, replace: bool = True) -> None:
    """As an export does, with --force or without."""
    remove_abandoned(output)
    with staging(output, replace=replace) as folder:
        (folder / "file").write_text(text)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with writer(tmp_path / "bundle") as (process, folder):
        process.kill()
        process.wait()
        assert (folder / "half").is_file()
        write(tmp_path / "bundle")
    assert names(tmp_path) == {"bundle"} and names(tmp_path / "bundle") == {"file"}


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with writer(tmp_path / "bundle") as (process, folder):
        write(tmp_path / "bundle")
        assert (folder / "half").is_file()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 0
    assert names(tmp_path) == {"bundle"} and names(tmp_path / "bundle") == {"half"}  # the later one replaced the earlier


def test_what_was_written_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was written meanwhile; choose another --output"), staging(tmp_path / "bundle"):
        write(tmp_path / "bundle")
    assert names(tmp_path) == {"bundle"} and names(tmp_path / "bundle") == {"file"}


def test_two_that_replace_the_same_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is in place between our two renames."""
    write(tmp_path / "bundle")
    rename = os.replace

    def raced(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name.endswith("-old"):
            monkeypatch.setattr(os, "replace", rename)
            shutil.copytree(target, tmp_path / "bundle")

    monkeypatch.setattr(os, "replace", raced)
    with pytest.raises(OutputError, match="another process has just written"):
        write(tmp_path / "bundle", "ours")
    monkeypatch.undo()
    assert (tmp_path / "bundle" / "file").read_text() == "whole"
    write(tmp_path / "bundle", "next")
    assert names(tmp_path) == {"bundle"}


def test_of_two_dead_and_one_living_the_dead_go(tmp_path: Path) -> None:
    with writer(tmp_path / "bundle") as (first, dead), writer(tmp_path / "bundle") as (_, living):
        first.kill()
        first.wait()
        remove_abandoned(tmp_path / "bundle")
        assert not dead.exists() and living.exists()


def test_other_outputs_are_not_touched(tmp_path: Path) -> None:
    others = [".bundle-2.partial-abcdefgh", ".bundle.partial-short", ".bundle.partial-abcdefgh.d", "bundle.partial-abcdefgh"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.partial-12345678").write_text("a file")
    (tmp_path / ".bundle.partial-87654321").symlink_to(tmp_path / others[0])
    before = names(tmp_path)
    write(tmp_path / "bundle")
    assert names(tmp_path) == before | {"bundle"}


def test_names_are_no_patterns(tmp_path: Path) -> None:
    (tmp_path / ".bundle.partial-abcdefgh").mkdir()
    write(tmp_path / "b*")
    assert names(tmp_path) == {".bundle.partial-abcdefgh", "b*"}


def test_a_replacement_that_was_killed_half_way_gives_the_old_one_back(tmp_path: Path) -> None:
    write(tmp_path / "bundle", "old")
    done = subprocess.run([sys.executable, "-c", _KILLED_REPLACER, str(tmp_path / "bundle")])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists() and len(names(tmp_path)) == 2
    remove_abandoned(tmp_path / "bundle")
    with pytest.raises(RuntimeError), staging(tmp_path / "bundle"):
        assert (tmp_path / "bundle" / "file").read_text() == "old"
        raise RuntimeError
    assert names(tmp_path) == {"bundle"}
    assert (tmp_path / "bundle" / "file").read_text() == "old"


def test_a_folder_that_vanishes_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may take a folder for an abandoned one between its making and its locking."""
    made: list[Path] = []

    def mkdtemp(prefix: str, dir: Path) -> str:
        folder = dir / f"{prefix}{len(made):08}"
        folder.mkdir()
        made.append(folder)
        if len(made) == 1:
            remove_abandoned(tmp_path / "bundle")
        return str(folder)

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    write(tmp_path / "bundle")
    assert len(made) == 2 and names(tmp_path) == {"bundle"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be told about what lies there, so it stays."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    (tmp_path / ".bundle.partial-abcdefgh").mkdir()
    monkeypatch.setattr("fcntl.flock", no_locks)
    write(tmp_path / "bundle")
    write(tmp_path / "bundle")
    assert names(tmp_path) == {".bundle.partial-abcdefgh", "bundle"}


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        write(tmp_path / "bundle")
    (tmp_path / ".bundle.partial-abcdefgh").mkdir()
    remove_abandoned(tmp_path / "bundle")
    assert set(os.listdir("/proc/self/fd")) == before
