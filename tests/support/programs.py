"""Stand-ins for NVIDIA's tools, and the script that calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.bundles import GRAPHS


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return file


def recorder(folder: Path, name: str) -> None:
    """A program that writes down its arguments, and the engine that it is asked for."""
    calls = f'printf "%s\\0" {name} "$@" >> {folder}/calls\nprintf "\\n" >> {folder}/calls\n'
    program(folder, name, calls + 'for word; do case $word in --saveEngine=*) echo engine > "${word#*=}" ;; esac; done\n')


def calls_of(folder: Path) -> list[list[str]]:
    return [line.split("\0")[:-1] for line in (folder / "calls").read_text().splitlines()]


def make_engines(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in GRAPHS:
        (folder / f"{name}.engine").write_text("engine")


def run_script(
    bundle: Path, label: str, *arguments: str, path: Path | None = None, cwd: Path | str = "/", only: bool = False
) -> subprocess.CompletedProcess[str]:
    """Args: path: folder of programs, before the others; only: there are no others."""
    first = [str(path)] if path else []
    others = [] if only else [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join([*first, *others])}
    command = [str(shutil.which("bash")), str(bundle / "engines" / f"commands-{label}.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


def bare(folder: Path) -> Path:
    """A PATH of what the script uses of coreutils."""
    folder.mkdir()
    for name in ("cat", "dirname", "mkdir", "mktemp", "mv", "rm"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder
