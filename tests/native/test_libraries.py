"""Where compiled libraries are looked for, and what is said of files that are none."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sts_export.errors import RequestError
from sts_export.native import libraries
from sts_export.native.elf import machine_of
from sts_export.native.libraries import Library, find_library, own_folders, what_is_wrong
from tests.support.shared_libraries import AARCH64, OTHER_MACHINE, X86_64, headers_only

NAMES = {X86_64: "x86-64", AARCH64: "aarch64"}
LIBRARY = Library("libsome.so", "some library", ("wanted",), "build it")


def write(folder: Path, content: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LIBRARY.file_name
    file.write_bytes(headers_only(["wanted"]) if content is None else content)
    return file.resolve()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The bundle's folder, and what stands for the repository's build folder and the package."""
    folders = [tmp_path / name for name in ("bundle", "build", "package")]
    monkeypatch.setattr(libraries, "own_folders", lambda: folders[1:])
    return folders


def test_the_order_of_the_places(places: list[Path], tmp_path: Path) -> None:
    """Given, bundle, repository, package; what is given goes before all."""
    assert find_library(LIBRARY, None, places[0]) is None
    for folder in reversed(places):
        file = write(folder)
        assert find_library(LIBRARY, None, places[0]) == file
    given = write(tmp_path / "given")
    assert find_library(LIBRARY, str(given), places[0]) == given


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no shared library for Linux on x86-64 or aarch64"),
        (b"not a library", "it is no shared library for Linux on x86-64 or aarch64"),
        (headers_only(["wanted"], OTHER_MACHINE), f"it is for {NAMES[OTHER_MACHINE]}, and this machine is "),
        (headers_only(["wanted"])[:-1], "it is damaged: it ends before what its header promises"),
        (headers_only(["getCreators"]), "it is another library, without wanted"),
    ],
    ids=["empty", "text", "other-machine", "cut", "other-library"],
)
def test_wrong_files(places: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str) -> None:
    """Given, such a file is refused; found, it is passed over with a line, and the next one is taken."""
    given = write(tmp_path / "given", content)
    with pytest.raises(RequestError) as caught:
        find_library(LIBRARY, str(given), places[0])
    said = str(caught.value)
    assert said.startswith(f"{given} cannot be used as some library: {reason}") and "\n" not in said
    assert said.endswith("; build it, or leave --plugins out")
    found, right = write(places[0], content), write(places[2])
    with caplog.at_level(logging.WARNING):
        assert find_library(LIBRARY, None, places[0]) == right
    (record,) = caplog.records
    assert record.getMessage().startswith(f"note: {found} is not used: {reason}")


def test_what_else_speaks_against_a_file(places: list[Path]) -> None:
    """It is asked only of files that are such a library."""
    asked: list[Path] = []
    wrong, right = write(places[0]), write(places[1])
    write(places[2], b"text")

    def unusable(file: Path) -> str | None:
        asked.append(file.resolve())
        return "too old" if len(asked) == 1 else None

    assert find_library(LIBRARY, None, places[0], unusable) == right and asked == [wrong, right]
    with pytest.raises(RequestError, match="too new"):
        find_library(LIBRARY, str(right), places[0], lambda file: "too new")


def test_a_given_file_that_is_not_there(places: list[Path], tmp_path: Path) -> None:
    write(places[0])
    for wrong in (tmp_path / "nowhere.so", tmp_path):
        with pytest.raises(RequestError, match=f"^there is no some library {wrong}; build it, or leave --plugins out$"):
            find_library(LIBRARY, str(wrong), places[0])
    with pytest.raises(RequestError, match="an empty path was given"):
        find_library(LIBRARY, "", places[0])


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(libraries, "machine_of", refuse)
    assert what_is_wrong(LIBRARY, tmp_path) == "it cannot be read (Permission denied)"


def test_a_folder_that_may_not_be_read(
    places: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever built there may have been another user: a line says so, and the next place is looked at."""
    closed, right = write(places[0]), write(places[1])
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(libraries, "machine_of", lambda file: refuse(file) and machine_of(file))
    with caplog.at_level(logging.WARNING):
        assert find_library(LIBRARY, None, places[0]) == right
    (record,) = caplog.records
    assert record.getMessage() == f"note: {closed} is not used: it cannot be read (Permission denied)"


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    """ONNX Runtime takes no such path."""
    given = write(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(RequestError, match=r"^path .* cannot be used .* is not UTF-8"):
        find_library(LIBRARY, str(given), tmp_path)


def test_libraries_of_linux_are_for_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, headers_only(["wanted"], X86_64))
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert what_is_wrong(LIBRARY, file) is None
    monkeypatch.setattr("platform.system", lambda: "Windows")
    assert what_is_wrong(LIBRARY, file) == "it is for x86-64, and this machine is x86-64 with Windows"


def test_the_package_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name that merely lies on the path, where anyone may have put it, is no package."""
    folder = tmp_path / "sts_export_kernels"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert folder not in own_folders()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    importlib.invalidate_caches()
    repository, package = own_folders()
    assert repository == Path(__file__).resolve().parents[2] / "build" / "plugins" and package == folder
    assert "sts_export_kernels" not in sys.modules
