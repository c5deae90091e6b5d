"""Room on the disk, and downloads that are interrupted in every way."""

from __future__ import annotations

import errno
import io
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sts_export.errors import OutputError, StsExportError
from tests.hub.fake_hub import FakeHub
from tests.hub.helpers import (
    CUT,
    FIRST,
    SECOND,
    assert_whole,
    blob,
    failure,
    locate,
    process,
)

# Room


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("usage", (), {"free": free}))


def test_no_room(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files[FIRST], hub.files[SECOND] = b"a" * (3 << 20), b"b" * (2 << 20)
    disk(monkeypatch, (5 << 20) - 1)
    message = failure(hub, tmp_path, OutputError)
    assert "no room for org/name: 5 MB to download, 4 MB free in " in message and "HF_HOME" in message
    assert not hub.gets(FIRST)
    disk(monkeypatch, 5 << 20)
    assert_whole(hub, locate(hub, tmp_path))


def test_what_is_there_needs_no_room(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = blob(hub, tmp_path, SECOND, ".incomplete")
    part.parent.mkdir(parents=True)
    blob(hub, tmp_path, FIRST).write_bytes(hub.files[FIRST])
    part.write_bytes(hub.files[SECOND][:100_000])
    disk(monkeypatch, 200_000 - 1)
    assert "no room" in failure(hub, tmp_path, OutputError)
    disk(monkeypatch, 200_000)
    assert_whole(hub, locate(hub, tmp_path))


class FullDisk(io.BufferedWriter):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_meanwhile(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        full = mode == "ab" and hub.etag(SECOND) in path.name
        return FullDisk(io.FileIO(path, "ab")) if full else plain(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    message = failure(hub, tmp_path, OutputError)
    assert "is full: free space or set HF_HOME to another disk, then run the same command again" in message
    monkeypatch.undo()
    assert_whole(hub, locate(hub, tmp_path))
    assert len(hub.gets(FIRST)) == 1


def test_a_cache_that_cannot_be_written_to(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "models--org--name").write_text("in the way")
    message = failure(hub, tmp_path, OutputError)
    assert "org/name cannot be kept in" in message and "HF_HOME" in message


# Interrupted downloads


def test_a_lost_connection_is_taken_up_again_by_itself(hub: FakeHub, large: int, tmp_path: Path) -> None:
    hub.faults.cut = {FIRST: CUT}
    assert_whole(hub, locate(hub, tmp_path))
    assert [request.range for request in hub.gets(FIRST)] == [None, f"bytes={large}-"]


def test_a_failed_download_resumes_with_the_next_run(hub: FakeHub, large: int, tmp_path: Path) -> None:
    hub.faults.cut, hub.faults.cut_error = {SECOND: CUT}, "down"
    message = failure(hub, tmp_path, StsExportError)
    assert "the hub failed to deliver org/name (503): wait some minutes, then run the same command again" in message
    assert blob(hub, tmp_path, SECOND, ".incomplete").read_bytes() == hub.files[SECOND][:large]
    hub.faults.stored = None
    hub.requests.clear()
    assert_whole(hub, locate(hub, tmp_path))
    assert [request.range for request in hub.gets(SECOND)] == [f"bytes={large}-"]
    assert hub.asked_for() == {SECOND}


def test_a_reset_connection(hub: FakeHub, large: int, tmp_path: Path) -> None:
    hub.faults.cut, hub.faults.reset = {FIRST: CUT}, True
    message = failure(hub, tmp_path, StsExportError)
    assert "the connection was lost while downloading org/name (" in message and "run the same command again" in message
    assert blob(hub, tmp_path, FIRST, ".incomplete").stat().st_size == large
    assert_whole(hub, locate(hub, tmp_path))
    assert hub.gets(FIRST)[-1].range == f"bytes={large}-"


def test_a_storage_host_without_ranges(hub: FakeHub, large: int, tmp_path: Path) -> None:
    hub.faults.cut, hub.faults.ignore_range = {FIRST: CUT}, True
    assert_whole(hub, locate(hub, tmp_path))
    assert hub.gets(FIRST)[-1].range == f"bytes={large}-"


@pytest.mark.parametrize("size", [299_999, 300_000])
def test_a_part_that_is_not_of_this_file(hub: FakeHub, tmp_path: Path, size: int) -> None:
    part = blob(hub, tmp_path, FIRST, ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(size))
    message = failure(hub, tmp_path, StsExportError)
    assert f"{FIRST} arrived damaged" in message
    assert not part.exists() and not blob(hub, tmp_path, FIRST).exists()
    assert_whole(hub, locate(hub, tmp_path))


def test_a_part_that_is_too_long_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    part = blob(hub, tmp_path, FIRST, ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(300_001))
    assert_whole(hub, locate(hub, tmp_path))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_resumes(hub: FakeHub, large: int, tmp_path: Path, how: signal.Signals) -> None:
    hub.faults.stall = {SECOND: CUT}
    cache = tmp_path / "cache"
    running = process(hub, cache)
    assert hub.stalled.wait(30)
    part = blob(hub, cache / "hub", SECOND, ".incomplete")
    wait_for(lambda: part.stat().st_size == large)
    running.send_signal(how)
    out, err = running.communicate(timeout=30)
    if how == signal.SIGINT:
        assert (running.returncode, out, err) == (130, "", "sts-export: interrupted\n")
    hub.faults.stall.clear()
    assert_whole(hub, locate(hub, cache / "hub"))
    assert [request.range for request in hub.gets(SECOND)] == [None, f"bytes={large}-"]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not happen")


def test_two_downloads_at_once_share_the_work(hub: FakeHub, tmp_path: Path) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(locate(hub, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1 and len(folders) == 3
    assert_whole(hub, folders[0])
    assert (len(hub.gets(FIRST)), len(hub.gets(SECOND))) == (1, 1)
