"""Command lines on copies of a checkpoint and its bundle, and what they print."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sts_export.cli import main


class Work:
    """A folder for one test, with copies of what it wants to break."""

    def __init__(self, origin: Path, folder: Path) -> None:
        self.origin = origin
        self.folder = folder
        self.picture = str(origin / "picture.png")
        self.bundle = str(origin / "bundle")
        self.output = str(folder / "new" / "output")

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.origin / name, self.folder / name))

    def write(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)

    def export(self, *arguments: str, model: str | Path | None = None, budget: str | None = "12") -> list[str]:
        amount = [] if budget is None else [f"--budget={budget}"]
        return ["--model", str(model or self.origin / "checkpoint"), *amount, "--output", self.output, *arguments]

    def export_broken(self, change: Callable[[Path], object]) -> list[str]:
        change(checkpoint := self.copy("checkpoint"))
        return self.export(model=checkpoint)

    def run(
        self, *arguments: str, image: str | None = None, prompt: str = "What is it?", bundle: str | None = None
    ) -> list[str]:
        return ["run", bundle or self.bundle, "--prompt", prompt, "--image", image or self.picture, *arguments]

    def show(self, *arguments: str, output: str | None = None) -> list[str]:
        target = output or str(self.folder / "kept.png")
        return ["show", self.bundle, "--image", self.picture, "--prompt", "What is it?", "-o", target, *arguments]

    def run_broken(self, change: Callable[[Path], object]) -> list[str]:
        change(bundle := self.copy("bundle"))
        return self.run(bundle=str(bundle))


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def rejson(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What main printed: nothing but one line on stderr."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sts-export: ") and printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    assert len(printed.err) < 900
    return printed.err.removeprefix("sts-export: ").rstrip("\n")


def check_refused(
    work: Work, capsys: pytest.CaptureFixture[str], arguments: Callable[[Work], list[str]], expected: str
) -> None:
    """Exit code 2, one line that says ``expected``, and no file more or less than before."""
    argv = arguments(work)
    capsys.readouterr()
    before = tree(work.folder), tree(work.origin)
    assert main(argv) == 2
    line = error_line(capsys)
    assert expected in line
    assert "Traceback" not in line
    assert (tree(work.folder), tree(work.origin)) == before
