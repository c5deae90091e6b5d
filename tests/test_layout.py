"""The repository's shape: small files, small folders, and every package in the wheel."""

from __future__ import annotations

import subprocess
import tomllib
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_FILES = 400, 15
SOURCES = {".py", ".cpp", ".h", ".cu", ".cmake", ""}  # "": the scripts
FREE = {"benchmarks/results"}  # records of runs


@pytest.fixture(scope="module")
def tracked() -> list[PurePosixPath]:
    """Files that git knows, or would with the next commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git does not know this folder: it is no checkout")
    return [PurePosixPath(line) for line in sorted({*listed.splitlines()}) if (ROOT / line).is_file()]


def test_no_source_file_is_long(tracked: list[PurePosixPath]) -> None:
    lines = {str(path): (ROOT / path).read_bytes().count(b"\n") for path in tracked if path.suffix in SOURCES}
    assert len(lines) > 300
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_no_folder_is_crowded(tracked: list[PurePosixPath]) -> None:
    counts = Counter(str(path.parent) for path in tracked)
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES and folder not in FREE} == {}


def test_every_package_is_in_the_wheel(tracked: list[PurePosixPath]) -> None:
    """setuptools takes the packages that pyproject.toml lists, and says nothing of others."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {folder: package for package, folder in settings["package-dir"].items()}
    packages = set()
    for path in tracked:
        if path.suffix == ".py" and path.parts[0] in ("sts_export", *places):
            packages.add(".".join((places.get(path.parts[0], path.parts[0]), *path.parent.parts[1:])))
    assert packages == set(settings["packages"])
