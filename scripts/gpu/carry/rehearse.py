"""``scripts/gpu/rehearse``: every step's command as the machine would run it, on toys and the CPU, held to the limits there.

Each step gets a fresh copy of the tree without git, the carried folder it would bring and an empty $OUT; only the home folder
stays from step to step.  The command is the exact one, but for ``--toy`` and what is asked for more at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scripts.gpu.carry.limits import LIMITS, Limits
from scripts.gpu.carry.pack import PACK
from scripts.gpu.carry.packages import IMAGE
from scripts.gpu.carry.step import fill
from scripts.gpu.carry.steps import CARRIED, STEPS, command
from scripts.gpu.carry.tree import copy_tree, head, tree_bytes
from scripts.gpu.refusals import Parser

_TAIL = 3000


@dataclass(frozen=True)
class Machine:
    """Where a rehearsal takes place.

    Args:
        folder: its tree, home and $OUT lie in it.
        python: the interpreter that is python3 there.
    """

    folder: Path
    python: Path

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def arrive(self, pack: Path, number: int) -> int:
        """Replace the tree and what it carries, and empty $OUT; returns the bytes that are brought."""
        for folder in (self.tree, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        self.out.mkdir()
        copy_tree(self.tree)
        return tree_bytes() + fill(pack, number, self.tree / CARRIED)

    def run(self, text: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """A command in the root of the tree, with nothing of this environment but its programs."""
        (self.folder / "home").mkdir(exist_ok=True)
        variables = {
            "PATH": f"{self.python.absolute().parent}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "OUT": str(self.out),
        }
        try:
            return subprocess.run(
                [*without_network(), "bash", "-c", text],
                cwd=self.tree,
                env=variables,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            return subprocess.CompletedProcess(text, 124, said if isinstance(said, str) else said.decode(), "out of time")


@cache
def without_network() -> list[str]:
    """What a command is put behind so that it reaches no other machine; nothing where that is not allowed."""
    prefix = ["unshare", "--net"]
    if shutil.which(prefix[0]) is None:
        return []
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 where a step failed or broke a limit."""
    args = _arguments(argv)
    record: dict[str, Any] = {
        "commit": head(),
        "what": "commands of scripts/gpu/pack run with toys on a CPU: bytes and seconds of this machine, no figure of a GPU",
        "versions": versions(args.python),
        "limits": {"brought_bytes": LIMITS.brought, "seconds": LIMITS.seconds, "characters": LIMITS.characters},
        "network": not without_network(),
        "steps": [],
    }
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        machine = Machine(Path(folder), args.python)
        for number in args.steps:
            step = rehearse(machine, args.pack, number, args.more)
            record["steps"].append(step)
            size, seconds = step["brought_bytes"] / 1e6, step["seconds"]
            print(f"{number} {step['name']}: {size:.1f} MB, {seconds:.0f} s, exit code {step['exit_code']}", flush=True)
            for line in step["violations"]:
                print(f"  {line}")
            if args.output is not None:
                args.output.write_text(json.dumps(record, indent=1) + "\n")
        if args.results is not None:
            shutil.copytree(machine.folder / "home" / "sts-gpu" / "results", args.results, dirs_exist_ok=True)
    return int(any(step["exit_code"] or step["violations"] for step in record["steps"]))


def rehearse(machine: Machine, pack: Path, number: int, more: str = "") -> dict[str, Any]:
    """Run one step.

    Args:
        more: added to the command's end after ``--toy``.

    Returns:
        Bytes brought, the command, seconds, exit code, files that would come back, limits that were broken, and where it
        failed the end of what it printed.
    """
    step = STEPS[number - 1]
    exact = command(step, head())
    brought = machine.arrive(pack, number)
    started = time.monotonic()
    done = machine.run(f"{exact} --toy {more}".rstrip(), step.timeout_s)
    seconds = time.monotonic() - started
    files = {str(file.relative_to(machine.out)): file.stat().st_size for file in machine.out.rglob("*") if file.is_file()}
    broken = violations(exact, brought, seconds, files)
    if step.timeout_s > LIMITS.seconds:
        broken.append(f"it asks for {step.timeout_s} seconds")
    return {
        "number": number,
        "name": step.name,
        "brought_bytes": brought,
        "command": exact,
        "added": f"--toy {more}".rstrip(),
        "seconds": round(seconds, 1),
        "timeout_s": step.timeout_s,
        "exit_code": done.returncode,
        "files": files,
        "violations": broken,
        "tail": (done.stdout + done.stderr)[-_TAIL:] if done.returncode else "",
    }


def violations(text: str, brought: int, seconds: float, files: dict[str, int], limits: Limits = LIMITS) -> list[str]:
    """Limits of the machine that a step breaks, in one line each.

    Args:
        text: its command.
        files: path under $OUT -> bytes.
    """
    checks = {
        f"{brought} bytes are brought": brought > limits.brought,
        f"it took {seconds:.0f} seconds": seconds > limits.seconds,
        f"its command has {len(text)} characters": len(text) > limits.characters,
        "its command is no single line": "\n" in text,
        f"{len(files)} files come back": len(files) > limits.files or not files,
        f"{sum(files.values())} bytes come back": sum(files.values()) > limits.all_bytes,
    }
    for name, size in files.items():
        checks[f"{name} is too large, too deep or badly named"] = (
            size > limits.file_bytes or name.count("/") > limits.folders or re.fullmatch(r"[\w./-]+", name) is None
        )
    return [line for line, broken in checks.items() if broken]


def versions(python: Path) -> dict[str, str | None]:
    """Of the interpreter and of the packages that the machine is known to have, as they are here."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "def of(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        "print(json.dumps({'python': platform.python_version(), **{n: of(n) for n in sys.argv[1:]}}))"
    )
    done = subprocess.run([str(python), "-I", "-c", code, *IMAGE], capture_output=True, text=True, check=True)
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    reader = Parser(prog="scripts/gpu/rehearse", description="README.md beside it says what for.", allow_abbrev=False)
    option = reader.add_argument
    option("pack", type=Path, help="what scripts/gpu/pack made")
    option("--python", type=Path, default=Path(sys.executable), help="interpreter with the packages there (default: this)")
    option("--steps", type=_steps, default=tuple(range(1, len(STEPS) + 1)), help="numbers, separated by commas (default: all)")
    option("--more", default="", help="arguments of scripts/gpu/run for every step")
    option("--output", type=Path, help="JSON file for the log")
    option("--results", type=Path, help="folder for what the steps measured")
    option("--scratch", type=Path, help="folder for the rehearsal's files (default: a temporary one)")
    args = reader.parse_args(argv)
    if shutil.which(str(args.python)) is None:
        reader.error(f"--python {args.python} is no interpreter")
    if not (args.pack / PACK).is_file():
        reader.error(f"there is no pack in {args.pack}; scripts/gpu/pack {args.pack} makes one")
    return args


def _steps(text: str) -> tuple[int, ...]:
    numbers = tuple(int(word) for word in text.split(",") if word.isdecimal())
    if len(numbers) != len(text.split(",")) or not set(numbers) <= set(range(1, len(STEPS) + 1)):
        raise argparse.ArgumentTypeError(f"{text!r} are no steps: numbers from 1 to {len(STEPS)}, separated by commas")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
