"""sts_export.hub against a hub in this process, over HTTP and without touching huggingface_hub."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants as hub_constants

from sts_export.cli import main
from sts_export.demo import MODEL_DIR
from sts_export.errors import CheckpointError, OutputError, StsExportError
from sts_export.hub import ALIASES, locate_model
from tests.fake_hub import COMMIT, FakeHub

MODEL = "org/name"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FIRST, SECOND = SHARDS
INDEX = "model.safetensors.index.json"
SMALL = sorted(file.name for file in MODEL_DIR.iterdir() if file.suffix in (".json", ".jinja"))
# What a repository also holds and an export does not need.
OTHERS = (
    "README.md",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "training_args.bin",
    "original/model.safetensors",
    "onnx/model.onnx",
    "model.Q4.gguf",
)

SIZE, CUT = 16 << 20, 13 << 20


def content(seed: int, size: int = 300_000) -> bytes:
    return random.Random(seed).randbytes(size)


def repository() -> dict[str, bytes]:
    """A checkpoint of two shards among other files."""
    files = {name: (MODEL_DIR / name).read_bytes() for name in SMALL}
    files |= {name: content(at) for at, name in enumerate((*SHARDS, *OTHERS))}
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": {"a": FIRST, "b": SECOND, "c": FIRST}}).encode()
    return files


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """No proxy, no token, not offline, whatever the environment says; the HTTP session may have seen it already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield
    huggingface_hub.close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(repository()) as running:
        yield running


@pytest.fixture
def large(hub: FakeHub) -> int:
    """Makes both shards larger than what huggingface_hub writes at once; how many bytes it keeps of one cut at CUT."""
    for name in SHARDS:
        hub.files[name] = content(int(name[6:11]), SIZE)
    return hub_constants.DOWNLOAD_CHUNK_SIZE


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)


def locate(hub: FakeHub, cache: Path, model: str = MODEL) -> Path:
    return locate_model(model, cache_dir=cache, endpoint=hub.endpoint)


def failure(hub: FakeHub, cache: Path, kind: type[StsExportError], model: str = MODEL) -> str:
    """The message of a download that must fail, in one line."""
    with pytest.raises(StsExportError) as caught:
        locate(hub, cache, model)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def process(hub: FakeHub, cache: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command line as a user runs it."""
    command = [sys.executable, "-m", "sts_export.cli", *(arguments or ("--model", MODEL, "--budget", "64"))]
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"} | environment
    return subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cache.parent
    )


def blob(hub: FakeHub, cache: Path, file: str, suffix: str = "") -> Path:
    return cache / "models--org--name" / "blobs" / (hub.etag(file) + suffix)


def assert_whole(hub: FakeHub, folder: Path) -> None:
    """Everything that is needed, nothing that is not, byte by byte."""
    assert {file.name for file in folder.iterdir()} == {*SMALL, INDEX, *SHARDS}
    for file in folder.iterdir():
        assert file.read_bytes() == hub.files[file.name]
    assert not list(folder.parents[1].rglob("*.incomplete"))


# Names


def test_aliases() -> None:
    assert ALIASES == {
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
        "llava-next-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-next-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    }


def test_an_alias_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    hub.repo = "Qwen/Qwen2.5-VL-3B-Instruct"
    folder = locate(hub, tmp_path, "qwen2.5-vl-3b")
    assert folder == tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct" / "snapshots" / COMMIT
    assert_whole(hub, folder)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("llava-1.5-7", "llava-1.5-7b"),
        ("LLaVA-1.5-13B", "llava-1.5-13b"),
        ("lava-next-7b", "llava-next-7b"),
        ("qwen-2.5-vl-7b", "qwen2.5-vl-7b"),
        ("dem", "demo"),
        ("llava-1.5-7@main", "llava-1.5-7b"),
    ],
)
def test_a_misspelt_alias_is_answered_with_the_nearest(typed: str, near: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"unknown model .*: give a folder, a hub id such as org/name; did you mean "
    ) as error:
        locate_model(typed)
    assert str(error.value).split("did you mean ")[1].startswith(near)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(
        CheckpointError, match="unknown model 'gpt': give a folder, a hub id such as org/name, or one of demo, "
    ):
        locate_model("gpt")


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "llava-1.5-7b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_model("org/name") == Path("org/name")
    assert locate_model("llava-1.5-7b") == Path("llava-1.5-7b")


# Revisions


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", COMMIT])
def test_a_revision(hub: FakeHub, tmp_path: Path, offline: Callable[[], None], revision: str) -> None:
    hub.revisions.add(revision)
    folder = locate(hub, tmp_path, f"{MODEL}@{revision}")
    assert_whole(hub, folder)
    offline()
    assert locate(hub, tmp_path, f"{MODEL}@{revision}") == folder
    with pytest.raises(CheckpointError, match="org/name is not in the local cache"):  # main was never downloaded
        locate(hub, tmp_path)


def test_an_alias_with_a_revision(hub: FakeHub, tmp_path: Path) -> None:
    hub.repo = ALIASES["llava-1.5-7b"]
    assert "llava-hf/llava-1.5-7b-hf has no revision 'v9'" in failure(hub, tmp_path, CheckpointError, "llava-1.5-7b@v9")


@pytest.mark.parametrize("revision", ["", "../../x", "a..b", "/etc", "two words", "-f"])
def test_what_cannot_be_a_revision(hub: FakeHub, tmp_path: Path, revision: str) -> None:
    assert "cannot be a revision of org/name" in failure(hub, tmp_path, CheckpointError, f"{MODEL}@{revision}")
    assert not hub.requests


def test_a_branch_that_moved(hub: FakeHub, tmp_path: Path) -> None:
    old = locate(hub, tmp_path)
    hub.commit = "d" * 40
    hub.files[SECOND] = content(99)
    hub.requests.clear()
    new = locate(hub, tmp_path)
    assert new != old
    assert_whole(hub, new)
    assert (len(hub.gets(FIRST)), len(hub.gets(SECOND))) == (0, 1)  # the same content is not fetched again


def test_offline_the_old_commit_stays_until_the_new_one_is_whole(
    hub: FakeHub, tmp_path: Path, offline: Callable[[], None]
) -> None:
    old = locate(hub, tmp_path)
    hub.commit = "d" * 40
    hub.files[SECOND] = content(99)
    hub.faults.stored = "down"
    failure(hub, tmp_path, StsExportError)
    offline()
    assert locate(hub, tmp_path) == old


# Which files


def test_only_what_is_needed_in_this_order(hub: FakeHub, tmp_path: Path) -> None:
    assert_whole(hub, locate(hub, tmp_path))
    assert hub.asked_for() == {*SMALL, INDEX, *SHARDS}  # among the others: consolidated.safetensors, *.bin
    first_times = list(dict.fromkeys(request.file for request in hub.requests if request.file))
    assert first_times[0] == "config.json"
    assert first_times[-2:] == [FIRST, SECOND]
    assert all(len(hub.gets(name)) == 1 for name in hub.asked_for())


def test_one_weight_file_without_index(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files[INDEX]
    hub.files["model.safetensors"] = content(9)
    folder = locate(hub, tmp_path)
    assert {file.name for file in folder.iterdir()} == {*SMALL, "model.safetensors"}
    assert hub.asked_for() == {*SMALL, "model.safetensors"}


def test_the_index_comes_before_a_single_file(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = content(9)
    assert_whole(hub, locate(hub, tmp_path))


def test_nothing_is_fetched_twice(hub: FakeHub, tmp_path: Path) -> None:
    folder = locate(hub, tmp_path)
    hub.requests.clear()
    assert locate(hub, tmp_path) == folder
    assert [request.kind for request in hub.requests] == ["info"]


def test_what_huggingface_hub_downloaded_is_used_and_the_other_way_round(hub: FakeHub, tmp_path: Path) -> None:
    huggingface_hub.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path, endpoint=hub.endpoint)
    hub.requests.clear()
    folder = locate(hub, tmp_path)
    assert "config.json" not in hub.asked_for()
    for name in (*SMALL, *SHARDS):
        found = huggingface_hub.try_to_load_from_cache(MODEL, name, cache_dir=tmp_path)
        assert found == str(folder / name)


def test_a_file_cut_short_in_the_cache_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    folder = locate(hub, tmp_path)
    os.truncate(folder / FIRST, 1000)
    hub.requests.clear()
    assert_whole(hub, locate(hub, tmp_path))
    assert hub.asked_for() == {FIRST}


def test_the_token_goes_to_the_hub_and_not_to_the_storage_host(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    locate(hub, tmp_path)
    assert {request.authorized for request in hub.requests if request.kind != "stored"} == {True}
    assert {request.authorized for request in hub.requests if request.kind == "stored"} == {False}


# Refused before any weight is downloaded


def reconfigure(hub: FakeHub, **changes: Any) -> None:
    hub.files["config.json"] = json.dumps(json.loads(hub.files["config.json"]) | changes).encode()


def test_an_unsupported_architecture(hub: FakeHub, tmp_path: Path) -> None:
    reconfigure(hub, model_type="florence9")
    assert "unsupported architecture 'florence9'" in failure(hub, tmp_path, CheckpointError)
    assert hub.asked_for() == {"config.json"}


def test_no_config(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    assert "org/name has no config.json" in failure(hub, tmp_path, CheckpointError)
    assert not hub.asked_for()


@pytest.mark.parametrize(
    ("pickle", "expected"), [(True, "has pickle weights only"), (False, "has no model.safetensors and no")]
)
def test_no_safetensors(hub: FakeHub, tmp_path: Path, pickle: bool, expected: str) -> None:
    for name in [INDEX, *SHARDS] + ([] if pickle else ["pytorch_model.bin", "training_args.bin"]):
        del hub.files[name]
    assert expected in failure(hub, tmp_path, CheckpointError)
    assert hub.asked_for() == {"config.json"}


def test_a_shard_that_the_repository_lacks(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files[SECOND]
    message = failure(hub, tmp_path, CheckpointError)
    assert f"lacks 1 of 2 weight files that its index names (first: {SECOND})" in message
    assert not hub.gets(FIRST)


@pytest.mark.parametrize("name", ["../../x.safetensors", "original/model.safetensors", "pytorch_model.bin"])
def test_an_index_that_names_something_else(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files[INDEX] = json.dumps({"weight_map": {"a": name}}).encode()
    assert f"names {name!r}, which is no safetensors file" in failure(hub, tmp_path, CheckpointError)
    assert not hub.gets(name)


def test_an_index_without_map(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[INDEX] = b"{}"
    assert "has no weight_map" in failure(hub, tmp_path, CheckpointError)


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


# Without a hub


def test_offline_with_everything_in_the_cache(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    folder = locate(hub, tmp_path)
    hub.requests.clear()
    offline()
    assert locate(hub, tmp_path) == folder
    assert not hub.requests


def test_offline_with_nothing(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    offline()
    message = failure(hub, tmp_path, CheckpointError)
    assert message == "org/name is not in the local cache and HF_HUB_OFFLINE is set: go online or give a folder"
    assert not list(tmp_path.iterdir())


def test_offline_after_an_interrupted_download(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    hub.faults.cut, hub.faults.cut_error = {SECOND: 120_000}, "down"
    failure(hub, tmp_path, StsExportError)
    offline()
    message = failure(hub, tmp_path, CheckpointError)
    assert f"org/name is incomplete in the local cache (1 of 2 weight files missing, first: {SECOND})" in message
    assert "HF_HUB_OFFLINE is set: go online and run the same command again" in message


def test_offline_with_a_blob_deleted(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    locate(hub, tmp_path)
    blob(hub, tmp_path, FIRST).unlink()
    offline()
    assert f"first: {FIRST}" in failure(hub, tmp_path, CheckpointError)


def test_no_network(hub: FakeHub, tmp_path: Path) -> None:
    cache, empty = tmp_path / "cache", tmp_path / "empty"
    folder = locate(hub, cache)
    hub.close()
    assert locate(hub, cache) == folder
    message = failure(hub, empty, CheckpointError)
    assert "org/name is not in the local cache and the hub cannot be reached (" in message
    blob(hub, cache, SECOND).unlink()
    message = failure(hub, cache, CheckpointError)
    assert "incomplete in the local cache (1 of 2" in message and "the hub cannot be reached (" in message


@pytest.mark.parametrize("fault", ["rate limit", "down"])
def test_a_hub_out_of_order_is_no_reason_not_to_use_the_cache(hub: FakeHub, tmp_path: Path, fault: str) -> None:
    folder = locate(hub, tmp_path)
    hub.faults.info = fault
    assert locate(hub, tmp_path) == folder


# Refusals of the hub

REFUSALS: dict[str, tuple[type[StsExportError], str]] = {
    "gated": (
        CheckpointError,
        "org/name is gated: accept its licence on its page on the hub, then run `hf auth login`",
    ),
    "missing": (
        CheckpointError,
        "org/name is no folder here and not on the hub (or is private): check the name, or run `hf auth",
    ),
    "bad token": (
        CheckpointError,
        "the hub does not accept your access token (401): run `hf auth login` again, or unset HF_TOKEN",
    ),
    "forbidden": (CheckpointError, "the hub refuses access to org/name (403): use a token that may read it"),
    "rate limit": (
        StsExportError,
        "the hub is limiting your requests (429): wait 7 seconds or log in with `hf auth login`, then run",
    ),
    "down": (StsExportError, "the hub failed to deliver org/name (503): wait some minutes, then run the same command again"),
}


@pytest.mark.parametrize("where", ["info", "resolve"])
@pytest.mark.parametrize("fault", REFUSALS)
def test_refusals(hub: FakeHub, tmp_path: Path, fault: str, where: str) -> None:
    setattr(hub.faults, where, fault)
    kind, expected = REFUSALS[fault]
    assert expected in failure(hub, tmp_path, kind)
    assert not hub.gets(FIRST)


def test_refusals_of_the_storage_host(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.stored = "forbidden"
    assert "(403)" in failure(hub, tmp_path, CheckpointError)


def test_an_unknown_repository(hub: FakeHub, tmp_path: Path) -> None:
    assert "org/other is no folder here and not on the hub" in failure(hub, tmp_path, CheckpointError, "org/other")


def test_an_unknown_revision(hub: FakeHub, tmp_path: Path) -> None:
    message = failure(hub, tmp_path, CheckpointError, "org/name@v9")
    assert message == "org/name has no revision 'v9': give a branch, tag or commit that it has"


def test_a_mirror_without_the_hubs_headers(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.anonymous = True
    message = failure(hub, tmp_path, CheckpointError)
    assert f"what answers at {hub.endpoint} is not a Hugging Face hub" in message


def test_something_else_than_a_hub_answers(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.not_json = True
    message = failure(hub, tmp_path, CheckpointError)
    assert f"what answers at {hub.endpoint} is not a Hugging Face hub" in message


# The command line


def run(hub: FakeHub, cache: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    running = process(hub, cache, *arguments, **environment)
    out, err = running.communicate(timeout=60)
    return running.returncode, out, err


def test_export_from_the_hub(tmp_path: Path, hub: FakeHub) -> None:
    hub.files = {file.name: file.read_bytes() for file in MODEL_DIR.iterdir()} | {"pytorch_model.bin": b"pickle"}
    cache = tmp_path / "cache"
    code, out, err = run(hub, cache, "--model", MODEL, "--budget", "64", "--output", "bundle")
    assert (code, err) == (0, "")  # no progress bars: stderr is no terminal
    assert "576 visual tokens" in out and (tmp_path / "bundle" / "manifest.json").is_file()
    assert not hub.asked_for() & {"README.md", "pytorch_model.bin"}
    hub.requests.clear()
    code, _, err = run(hub, cache, "--model", MODEL, "--budget", "32", "--output", "other", HF_HUB_OFFLINE="1")
    assert (code, err, hub.requests) == (0, "", [])


def test_errors_on_the_command_line(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults.cut, hub.faults.cut_error = {FIRST: 120_000}, "down"
    code, out, err = run(hub, tmp_path / "cache")
    assert (code, out, err.count("\n")) == (1, "", 1)  # no log lines of huggingface_hub
    assert err.startswith("sts-export: the hub failed to deliver org/name (503)")


def test_progress_bars_on_a_terminal(tmp_path: Path, hub: FakeHub) -> None:
    terminal, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    code = "from sts_export.hub import locate_model; locate_model('org/name')"
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | settings, stderr=child, cwd=tmp_path) as running:
        os.close(child)
        shown = b""
        while chunk := read_terminal(terminal):
            shown += chunk
    os.close(terminal)
    assert running.returncode == 0
    assert FIRST.encode() in shown and b"100%" in shown


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_help_names_the_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(alias in shown for alias in ALIASES)
