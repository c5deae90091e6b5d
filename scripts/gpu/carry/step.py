"""``scripts/gpu/step N``: fill the folder that step N carries, and print its command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.gpu.carry.limits import LIMITS
from scripts.gpu.carry.pack import PACK
from scripts.gpu.carry.steps import CARRIED, STEPS, bring, command
from scripts.gpu.carry.there import CONTENTS
from scripts.gpu.carry.tree import head, tree_bytes
from scripts.gpu.machine.environment import ROOT
from scripts.gpu.refusals import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 where the step would bring too much or its pack is missing."""
    reader = Parser(prog="scripts/gpu/step", description="README.md beside it says what for.", allow_abbrev=False)
    reader.add_argument("number", type=int, choices=range(1, len(STEPS) + 1), help="of the step, from 1")
    reader.add_argument("--pack", type=Path, default=Path("gpu-pack"), help="what scripts/gpu/pack made (default: gpu-pack)")
    reader.add_argument("--bring", action="store_true", help="print the command that brings its files and runs nothing")
    args = reader.parse_args(argv)
    if not (args.pack / PACK).is_file():
        print(f"step: there is no pack in {args.pack}; scripts/gpu/pack {args.pack} makes one", file=sys.stderr)
        return 1
    carried = fill(args.pack, args.number, ROOT / CARRIED)
    brought = tree_bytes() + carried
    if brought > LIMITS.brought:
        sizes = f"the tree and {CARRIED} are {brought} bytes, more than {LIMITS.brought}"
        print(f"step: {sizes}: make the pack again", file=sys.stderr)
        return 1
    step = STEPS[args.number - 1]
    print(f"{brought / 1e6:.1f} MB to bring, {step.timeout_s} s at most; carry {CARRIED} and run:", file=sys.stderr)
    print((bring if args.bring else command)(step, head()))
    return 0


def fill(pack: Path, number: int, folder: Path) -> int:
    """Replace the folder by what the step carries; returns its bytes."""
    content: dict[str, Any] = json.loads((pack / PACK).read_text())
    files = content["steps"][number - 1]["files"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in files:
        shutil.copy(pack / name, folder / name)
    facts = {"files": files, "archives": content["archives"], "built_from": content["built_from"]}
    (folder / CONTENTS).write_text(json.dumps(facts, indent=1) + "\n")
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
