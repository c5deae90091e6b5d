"""Wheels go in parts and arrive whole."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "gpu"
WHEEL = "sts_dummy-1.0-py3-none-any.whl"
PART = 1000


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # pip of this interpreter; nothing is looked up, since the wheel is a file
    command = [str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable})


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A wheel of some 5 kB, in parts of 1 kB."""
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as wheel:
        wheel.writestr("sts_dummy.py", "VALUE = 3\n#" + "".join(f"{number:04d}" for number in range(1000)))
        wheel.writestr("sts_dummy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sts-dummy\nVersion: 1.0\n")
        wheel.writestr("sts_dummy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("sts_dummy-1.0.dist-info/RECORD", "")
    done = script("wheels", "--part-size", f"{PART}", "--output", tmp_path / "parts", tmp_path / WHEEL)
    assert done.returncode == 0, done.stderr
    return tmp_path / "parts"


def test_parts(tmp_path: Path, parts: Path) -> None:
    pieces = sorted(parts.glob(f"{WHEEL}.[0-9]*"))
    assert [piece.suffix for piece in pieces][:2] == [".001", ".002"]
    assert all(piece.stat().st_size == PART for piece in pieces[:-1]) and len(pieces) > 3
    assert b"".join(piece.read_bytes() for piece in pieces) == (tmp_path / WHEEL).read_bytes()


def test_joined_and_installed(tmp_path: Path, parts: Path) -> None:
    done = script("join_wheels", parts, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    code = "import sts_dummy; print(sts_dummy.VALUE)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "site")
    assert ran.stdout == "3\n"


def test_split_again_into_fewer_parts(tmp_path: Path, parts: Path) -> None:
    """What was there before does not get in the way."""
    script("wheels", "--part-size", "1M", "--output", parts, tmp_path / WHEEL)
    assert [piece.suffix for piece in parts.glob(f"{WHEEL}.[0-9]*")] == [".001"]
    assert script("join_wheels", parts, tmp_path / "site").returncode == 0


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_part_is_missing_or_altered(tmp_path: Path, parts: Path, damage: str) -> None:
    part = parts / f"{WHEEL}.002"
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(bytes(reversed(part.read_bytes())))
    done = script("join_wheels", parts, tmp_path / "site")
    assert done.returncode == 1
    assert f"a part of {WHEEL} is missing or damaged" in done.stderr
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part-size", "abc"], "--part-size abc is no size such as 48M"),
        (["--part-size", "0"], "--part-size 0 is no size such as 48M"),
        (["--python", "x"], "--python x is no version such as 3.12"),
        (["--machine", "x86 64"], "--machine x86 64 is no processor such as x86_64"),
        (["--python", "--machine"], "--python needs a value"),
        (["--output"], "--output needs a value"),
        (["--part"], "unknown option --part"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Refused before anything is downloaded: there is no such wheel file, either."""
    done = script("wheels", tmp_path / "absent.whl", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("folder", ["absent", ""])
def test_nothing_to_join(tmp_path: Path, folder: str) -> None:
    """No folder, or one without parts."""
    done = script("join_wheels", tmp_path / folder, tmp_path / "site")
    assert done.returncode == 2
    assert done.stderr.startswith("join_wheels: no parts in ") and len(done.stderr.splitlines()) == 1
