"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sts_export.files import PARTS, new_file, replace_file, replace_files, replace_json


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    with new_file(file) as stream:
        stream.write(b"one")
        assert not file.exists() and len(list(tmp_path.glob(PARTS))) == 1
    assert file.read_bytes() == b"one" and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, old: bytes | None) -> None:
    file = tmp_path / "a.bin"
    if old is not None:
        file.write_bytes(old)

    with pytest.raises(KeyboardInterrupt), new_file(file) as stream:  # not only errors
        stream.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ([] if old is None else ["a.bin"])
    assert old is None or file.read_bytes() == old


def test_whoever_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    replace_file(file, b"old")
    with file.open("rb") as stream:
        replace_file(file, memoryview(b"new"))
        assert stream.read() == b"old"
    assert file.read_bytes() == b"new"


def test_two_threads_that_write_the_same_file(tmp_path: Path) -> None:
    """Each writes a part of its own; the last to end is what stays."""
    file, both_open = tmp_path / "a.bin", threading.Barrier(2, timeout=30)

    def write(content: bytes) -> None:
        with new_file(file) as stream:
            stream.write(content)
            both_open.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [b"one", b"two"]))  # raises what a thread raised
    assert file.read_bytes() in (b"one", b"two") and names(tmp_path) == ["a.bin"]


def test_several_files_together(tmp_path: Path) -> None:
    """The second cannot be written: the first is as it was."""
    first, second = tmp_path / "a", tmp_path / "gone" / "b"
    replace_file(first, b"old")
    with pytest.raises(FileNotFoundError):
        replace_files({first: b"new", second: b"new"})
    assert first.read_bytes() == b"old" and names(tmp_path) == ["a"]
    second.parent.mkdir()
    replace_files({first: b"new", second: b"new"})
    assert (first.read_bytes(), second.read_bytes()) == (b"new", b"new") and names(second.parent) == ["b"]


def test_what_is_the_same_keeps_its_time(tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    replace_files({same: b"1", other: b"1"})
    for file in (same, other):
        os.utime(file, (1, 1))
    replace_files({same: b"1", other: b"2"})
    assert same.stat().st_mtime == 1 and other.stat().st_mtime > 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, other, link = tmp_path / "real", tmp_path / "other", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    replace_file(link, b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    replace_files({link: b"newer", other: b"besides"})
    assert link.is_symlink() and (real.read_bytes(), other.read_bytes()) == (b"newer", b"besides")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "other", "real"]


def test_json(tmp_path: Path) -> None:
    replace_json(tmp_path / "a.json", {"é": [1.5, None]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"é": [1.5, None]} and text.endswith("}\n")
    with pytest.raises(TypeError):
        replace_json(tmp_path / "b.json", object())
    assert names(tmp_path) == ["a.json"]
