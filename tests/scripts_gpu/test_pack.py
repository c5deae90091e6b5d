"""What is brought, cut to what fits through, and the commands that go with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.gpu.arguments import parser
from scripts.gpu.carry import limits, pack, packages, rehearse, step
from scripts.gpu.carry.archives import needed
from scripts.gpu.carry.limits import LIMITS
from scripts.gpu.carry.steps import CARRIED, STEPS, bring, command
from scripts.gpu.carry.tree import head, tree_bytes, tree_files

ROOT = Path(__file__).parents[2]
COMMIT = "0" * 40
TREE, ROOM = 1_000_000, 2000  # bytes of a machine in small


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as content:
        for path, data in files.items():
            content.writestr(path, data)
    return file


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Stand-ins for the packages, one of them 3 MB that do not compress, and for two of the binaries."""
    noise = b"".join(bytes([i * i % 251 ^ i % 256 ^ (i >> 8) * 37 % 256]) for i in range(3000)) * 1000
    engine = {
        "onnxruntime/__init__.py": b"__version__ = '1.31.1'",
        "onnxruntime/capi/large.so": noise,
        "onnxruntime/capi/libonnxruntime.so.1.31.1": b"x",
        "onnxruntime/tools/more.py": b"x",
    }
    built = tmp_path / "built"
    built.mkdir()
    for name in ("check_kernels", "libsts_plugins.so"):
        (built / name).write_text(name)
    return [
        *("--wheel", str(wheel(tmp_path, "engine", engine))),
        *("--small", str(wheel(tmp_path, "small", {"small.py": b""}))),
        *("--binaries", str(built)),
    ]


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes little more than the tree."""
    monkeypatch.setattr(pack, "tree_bytes", lambda: TREE)
    monkeypatch.setattr(pack, "LIMITS", limits.Limits(brought=TREE + limits.MARGIN + ROOM))


@pytest.fixture
def checkout() -> None:
    try:
        tree_files()
    except RuntimeError as error:
        pytest.skip(str(error))


def packed(folder: Path, options: list[str]) -> dict[str, Any]:
    assert pack.main([str(folder), *options]) == 0
    content: dict[str, Any] = json.loads((folder / pack.PACK).read_text())
    return content


def test_the_pack(tmp_path: Path, options: list[str], small_machine: None) -> None:
    """In as many parts as it takes; together they are the archive, which has what is needed and nothing else."""
    content = packed(tmp_path / "pack", options)
    assert content["not_built"] == ["sts_conformance", "libsts_onnxruntime.so", "libsts_kernels.so"]
    parts = content["archives"][pack.ENGINE]["parts"]
    assert 1 < len(parts) <= len(STEPS)
    for one in content["steps"]:
        assert TREE <= one["bytes"] <= TREE + ROOM + limits.MARGIN
    carried = [list(one["files"]) for one in content["steps"]]
    assert carried[: len(parts)] == [[pack.BASE, parts[0]], *([part] for part in parts[1:])]
    whole = tmp_path / "whole"
    whole.write_bytes(b"".join((tmp_path / "pack" / part).read_bytes() for part in parts))
    with tarfile.open(whole) as tar:
        assert [name for name in tar.getnames() if name.endswith((".py", ".so", ".1"))] == [
            "site/onnxruntime/__init__.py",
            "site/onnxruntime/capi/large.so",
        ]
    with tarfile.open(tmp_path / "pack" / pack.BASE) as tar:
        assert {"site/small.py", "binaries/check_kernels", "binaries/libsts_plugins.so"} <= set(tar.getnames())
        assert tar.getmember("binaries/check_kernels").mode & 0o111


def test_no_room(
    tmp_path: Path, options: list[str], small_machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack, "tree_bytes", lambda: TREE + ROOM)
    assert pack.main([str(tmp_path / "pack"), *options]) == 1
    assert "leave no room" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "pack").exists()


def test_another_folder_is_not_replaced(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    assert pack.main([str(tmp_path / "photos"), *options]) == 2
    assert (tmp_path / "photos" / "one.png").exists()


def test_a_damaged_wheel(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engine-1.0-py3-none-any.whl").write_bytes(b"cut")
    assert pack.main([str(tmp_path / "pack"), *options]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("pack: ") and "engine-1.0-py3-none-any.whl is no wheel, or damaged" in last


def test_what_is_left_out_of_onnxruntime() -> None:
    kept = ("onnxruntime/capi/libonnxruntime_providers_cuda.so", "onnxruntime/__init__.py", "onnxruntime_gpu.dist-info/RECORD")
    assert all(map(needed, kept))
    left = ("capi/libonnxruntime.so.1.31.1", "capi/libonnxruntime_providers_tensorrt.so", "transformers/a.py", "tools/b.py")
    assert not any(needed(f"onnxruntime/{name}") for name in left)


def test_a_step_is_filled(tmp_path: Path, options: list[str], small_machine: None) -> None:
    """With what it carries alone, whatever lay there before."""
    content = packed(tmp_path / "pack", options)
    folder = tmp_path / "carried"
    folder.mkdir()
    (folder / "old").touch()
    for number in (1, len(STEPS)):
        nbytes = step.fill(tmp_path / "pack", number, folder)
        files = {file.name for file in folder.iterdir()}
        assert files == {*content["steps"][number - 1]["files"], "contents.json"}
        assert nbytes == sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("more", [[], ["--bring"]])
def test_the_command_of_a_step(
    tmp_path: Path,
    options: list[str],
    checkout: None,
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a line of its own, for the commit that is checked out; nothing else is printed there."""
    packed(tmp_path / "pack", options)
    monkeypatch.setattr(step, "ROOT", tmp_path)
    capsys.readouterr()
    assert step.main(["2", "--pack", str(tmp_path / "pack"), *more]) == 0
    assert capsys.readouterr().out == (bring if more else command)(STEPS[1], head()) + "\n"
    assert (tmp_path / CARRIED / "contents.json").is_file()


def test_a_tree_that_has_grown(
    tmp_path: Path, options: list[str], small_machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(tmp_path / "pack", options)
    monkeypatch.setattr(step, "ROOT", tmp_path)
    monkeypatch.setattr(step, "tree_bytes", lambda: LIMITS.brought)
    assert step.main(["1", "--pack", str(tmp_path / "pack")]) == 1
    assert "make the pack again" in capsys.readouterr().err


def test_the_script_hands_on_the_answer(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "gpu" / "step"), "1", "--pack", "absent"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stderr == "step: there is no pack in absent; scripts/gpu/pack absent makes one\n"


@pytest.mark.parametrize("name", ["pack", "step", "rehearse"])
def test_a_fresh_checkout_will_do(name: str) -> None:
    """What prepares a run imports nothing that is not Python's own or the scripts'."""
    command = [sys.executable, "-S", "-P", "-m", f"scripts.gpu.carry.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["1", "--pack", str(tmp_path)]) == 1
    assert "there is no pack" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        rehearse.main([str(tmp_path)])
    assert "there is no pack" in capsys.readouterr().err


@pytest.mark.parametrize("one", STEPS, ids=lambda one: one.name)
def test_commands(one: Any) -> None:
    """Each is a line within the limits, and scripts/gpu/run takes its arguments."""
    text = command(one, COMMIT)
    assert len(text) < LIMITS.characters and "\n" not in text and text.startswith(bring(one, COMMIT))
    assert one.limit_s < one.timeout_s <= LIMITS.seconds and one.expected_s < one.limit_s
    args = parser().parse_args([*text.split(" -- ")[1].split(), "--toy"])
    assert args.time_limit < one.limit_s


def test_no_step_replaces_what_another_measured() -> None:
    """Their records have other names."""
    names = []
    for one in STEPS:
        args = parser().parse_args(one.arguments.split())
        names += [(part, args.label) for part in args.parts]
    assert len(set(names)) == len(names)
    assert {part for part, _ in names} == {"kernels", "sanitize", "profile", "smoke", "end-to-end", "ab"}


def test_the_carried_folder_is_ignored(checkout: None) -> None:
    """It travels because it is named, and once."""
    assert not any(name.startswith(CARRIED) for name in tree_files())
    assert "/build/\n" in (ROOT / ".gitignore").read_text()


def test_the_tree_leaves_room_for_a_part(checkout: None) -> None:
    assert tree_bytes() + 48e6 < LIMITS.brought


def test_every_dependency_is_there_or_brought() -> None:
    """Those of the package and of its reference."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["reference"]]
    brought = [Requirement(text).name for text in (*packages.SMALL, packages.ONNXRUNTIME)]
    there = {canonicalize_name(name) for name in (*packages.IMAGE, *brought)}
    assert {canonicalize_name(Requirement(text).name) for text in asked} <= there
