"""What a failure leaves behind (nothing), and what --force may replace (bundles)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sts_export.exporting.exporter
from sts_export.bundle.manifest import open_bundle
from sts_export.errors import OutputError
from sts_export.exporting.exporter import export
from sts_export.testing.checkpoints import write_random_llava
from tests.exporting.helpers import files, request


class Interrupt:
    """Raises in the middle of the weights."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1
        if done > total // 2:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken"), SystemExit(3), MemoryError()], ids=repr)
@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path, error: BaseException, nested: bool) -> None:
    output = tmp_path / "new" / "deep" / "bundle" if nested else tmp_path / "bundle"
    interrupt = Interrupt(error)
    with pytest.raises(type(error)):
        export(request(checkpoint, output), interrupt)
    assert interrupt.calls > 1
    assert files(tmp_path) == {}


@pytest.mark.parametrize("step", ["_save_graph", "_copy_companions", "write_manifest", "_store_weights"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=["interrupt", "io-error"]
)
def test_a_failure_at_any_step_leaves_nothing_and_keeps_the_old_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    export(request(checkpoint, tmp_path / "bundle", weights="link"))
    before = files(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(sts_export.exporting.exporter, step, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        export(request(checkpoint, tmp_path / "bundle", weights="link", force=True, budget="8"))
    assert files(tmp_path) == before


def test_the_old_bundle_comes_back_if_the_last_rename_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(request(checkpoint, tmp_path / "bundle", weights="link"))
    before = files(tmp_path)
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == "bundle" and not Path(source).name.endswith("-old"):
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        export(request(checkpoint, tmp_path / "bundle", weights="link", force=True, budget="8"))
    assert files(tmp_path) == before


def test_a_disk_that_is_too_small(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 100_000}))
    with pytest.raises(OutputError, match="no room for the weights: 0 MB needed"):
        export(request(checkpoint, tmp_path / "bundle"))
    assert files(tmp_path) == {}


def test_a_disk_that_fills_up_meanwhile(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real stream whose file must not grow beyond 200 kB."""
    import io

    class SmallDisk(io.FileIO):
        def write(self, block: Any) -> int:
            if self.tell() + len(block) > 200_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(block)

    real = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return SmallDisk(path, "w") if mode == "wb" else real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OutputError, match="is full; free 0 MB or use --weights link"):
        export(request(checkpoint, tmp_path / "bundle"))
    assert files(tmp_path) == {}


def test_a_disk_that_is_full_for_the_graphs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        export(request(checkpoint, tmp_path / "bundle", weights="link"))
    assert files(tmp_path) == {}


def test_a_parent_that_cannot_be_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another --output"):
        export(request(checkpoint, tmp_path / "file" / "bundle"))

    def denied(*args: Any, **kwargs: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr("tempfile.mkdtemp", denied)
    with pytest.raises(OutputError, match="Permission denied; choose another --output"):
        export(request(checkpoint, tmp_path / "new" / "bundle"))
    assert files(tmp_path) == {"file": b"x"}


def test_force_replaces_a_bundle_and_all_of_it(checkpoint: Path, tmp_path: Path) -> None:
    export(request(checkpoint, tmp_path / "bundle"))
    with pytest.raises(OutputError, match="exists; choose another --output or replace it with --force"):
        export(request(checkpoint, tmp_path / "bundle", budget="8"))
    assert open_bundle(tmp_path / "bundle").manifest.pruning.average == 12
    new = export(request(checkpoint, tmp_path / "bundle", budget="8", weights="link", force=True))
    assert open_bundle(tmp_path / "bundle").manifest == new.manifest
    assert not (tmp_path / "bundle" / "weights.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_force_follows_a_link_to_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    export(request(checkpoint, tmp_path / "real"))
    (tmp_path / "link").symlink_to("real")
    export(request(checkpoint, tmp_path / "link", budget="8", force=True))
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / "real").manifest.pruning.average == 8


def test_force_fills_an_empty_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    export(request(checkpoint, tmp_path / "bundle", weights="link", force=True))
    open_bundle(tmp_path / "bundle")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def make_web_app(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "web app", "schema_version": 1}')
    (path / "photos").mkdir()


def make_damaged(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"schema_version": 1, "pruning"')


FOREIGN: dict[str, Callable[[Path], object]] = {
    "folder": make_folder,
    "file": lambda path: path.write_text("years of work"),
    "folder-with-another-manifest": make_web_app,
    "folder-with-a-damaged-manifest": make_damaged,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_bundle_is_never_replaced(
    checkpoint: Path, tmp_path: Path, make: Callable[[Path], object], force: bool
) -> None:
    make(tmp_path / "output")
    before = files(tmp_path)
    with pytest.raises(OutputError) as caught:
        export(request(checkpoint, tmp_path / "output", force=force))
    assert ("is not a bundle" in str(caught.value)) == force
    assert files(tmp_path) == before


def test_force_never_removes_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    export(request(checkpoint, tmp_path / "bundle", weights="link"))
    source = write_random_llava(tmp_path / "bundle" / "source")
    before = files(tmp_path)
    with pytest.raises(OutputError, match="holds the checkpoint itself"):
        export(request(source, tmp_path / "bundle", force=True))
    assert files(tmp_path) == before
