"""``scripts/gpu/pack``: everything that a run elsewhere needs, made beforehand and cut to what fits through."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.gpu.carry.archives import needed, sha256, split, tar_folders, unzip
from scripts.gpu.carry.binaries import build, collect
from scripts.gpu.carry.limits import LIMITS, MARGIN
from scripts.gpu.carry.packages import ONNXRUNTIME, PLATFORMS, PYTHON, SMALL
from scripts.gpu.carry.steps import STEPS, bring, command
from scripts.gpu.carry.tree import head, tree_bytes
from scripts.gpu.refusals import Parser

BASE, ENGINE = "base.tar.xz", "onnxruntime.tar.xz"
PACK = "pack.json"


class PackError(Exception):
    """It cannot be made; says why in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, also where libraries could not be built, which is said; 1 where the pack cannot be made."""
    args = _arguments(argv)
    target = args.output.resolve()
    if target.exists() and not (target / PACK).is_file() and any(target.iterdir()):
        print(f"pack: {target} is not empty and no pack; name another folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        try:
            pack = make(args, work)
        except (PackError, OSError, RuntimeError) as error:
            print(f"pack: {error}", file=sys.stderr)
            return 1
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(work / "pack", target)
    for step in pack["steps"]:
        print(f"{step['number']} {step['name']}: {step['bytes'] / 1e6:.1f} MB, {step['expected_s']} s expected")
    print(f"{target / 'commands'} has the commands; scripts/gpu/step N --pack {args.output} fills the folder that one carries")
    return 0


def make(args: argparse.Namespace, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Write the pack into ``work``/pack.

    Raises:
        PackError: a package cannot be had, or the parts do not fit.
    """
    folder = work / "pack"
    folder.mkdir()
    base = {"site": work / "small", "binaries": work / "binaries"}
    missing = _binaries(args, work, base["binaries"])
    unzip(args.small or _download(SMALL, work / "small-wheels"), base["site"])
    tar_folders(folder / BASE, base)
    unzip([args.wheel] if args.wheel else _download([ONNXRUNTIME], work / "wheels"), work / "engine", needed)
    tar_folders(folder / ENGINE, {"site": work / "engine"})
    tree, base_bytes = tree_bytes(), (folder / BASE).stat().st_size
    most = LIMITS.brought - MARGIN - tree - base_bytes
    if most <= 0:
        sizes = f"the tree ({tree / 1e6:.1f} MB) and {BASE} ({base_bytes / 1e6:.1f} MB)"
        raise PackError(f"{sizes} leave no room in {LIMITS.brought} bytes")
    digest = sha256(folder / ENGINE)
    parts = split(folder / ENGINE, most)
    if len(parts) > len(STEPS):
        raise PackError(f"{ENGINE} makes {len(parts)} parts, and there are {len(STEPS)} steps")
    archives = {
        BASE: {"parts": [BASE], "sha256": sha256(folder / BASE), "into": "."},
        ENGINE: {"parts": [part.name for part in parts], "sha256": digest, "into": "."},
    }
    steps: list[dict[str, Any]] = []
    for index, step in enumerate(STEPS):
        files = ([BASE] if index == 0 else []) + ([parts[index].name] if index < len(parts) else [])
        steps.append(
            {
                "number": index + 1,
                "name": step.name,
                "files": {name: sha256(folder / name) for name in files},
                "bytes": tree + sum((folder / name).stat().st_size for name in files),
                "expected_s": step.expected_s,
                "timeout_s": step.timeout_s,
            }
        )
    pack = {"built_from": head(), "tree_bytes": tree, "not_built": missing, "archives": archives, "steps": steps}
    (folder / PACK).write_text(json.dumps(pack, indent=1) + "\n")
    (folder / "commands").write_text(commands_text(head()))
    return {"steps": steps}


def commands_text(commit: str) -> str:
    """For people: what to do for each step."""
    lines = []
    for index, step in enumerate(STEPS):
        lines += [
            f"# step {index + 1}, {step.name}: scripts/gpu/step {index + 1}, then with a limit of {step.timeout_s} s, "
            f"{step.expected_s} s expected:",
            command(step, commit),
            "# to bring its files again to another machine, without running it:",
            bring(step, commit),
            "",
        ]
    return "\n".join(lines)


def _binaries(args: argparse.Namespace, work: Path, folder: Path) -> list[str]:
    """Build or take them; returns what is missing, which is said."""
    built = args.binaries
    if built is None:
        built = work / "build"
        options = {"--tensorrt-root": args.tensorrt_root, "--onnxruntime-root": args.onnxruntime_root}
        roots = {option: root.resolve() for option, root in options.items() if root is not None}
        if reason := build(built, roots, args.architectures, args.jobs):
            print(f"pack: {reason}", file=sys.stderr)
    missing = collect(built, folder)
    if missing:
        print(f"pack: without {', '.join(missing)}", file=sys.stderr)
    return missing


def _download(requirements: Sequence[str], folder: Path) -> list[Path]:
    """Wheels for the Python there, without what they depend on.

    Raises:
        PackError: pip finds none.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    options = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    options += [word for name in PLATFORMS for word in ("--platform", name)]
    done = subprocess.run([*pip, *options, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackError((done.stderr.strip().splitlines() or ["pip download failed"])[-1])
    return sorted(folder.glob("*.whl"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    reader = Parser(prog="scripts/gpu/pack", description="README.md beside it says what for.", allow_abbrev=False)
    option = reader.add_argument
    option("output", type=Path, help="folder for the pack; an earlier pack is replaced")
    option("--tensorrt-root", type=Path, help="as of scripts/build_plugins")
    option("--onnxruntime-root", type=Path, help="as of scripts/build_plugins")
    option("--architectures", default="90", help="of the GPU there (default: 90)")
    option("--jobs", type=int, default=2, help="of the compiler (default: 2)")
    option("--binaries", type=Path, help="folder that scripts/build_plugins filled before; nothing is built then")
    option("--wheel", type=Path, help=f"wheel of {ONNXRUNTIME} (default: downloaded)")
    option("--small", type=Path, nargs="+", help=f"wheels of {' '.join(SMALL)} (default: downloaded)")
    args = reader.parse_args(argv)
    for name in ("tensorrt_root", "onnxruntime_root", "binaries", "wheel"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            reader.error(f"--{name.replace('_', '-')} {path} is not there")
    return args


if __name__ == "__main__":
    sys.exit(main())
