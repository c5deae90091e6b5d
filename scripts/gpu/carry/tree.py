"""The tree that travels with every call: what git tracks, and what it neither tracks nor ignores."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from scripts.gpu.machine.environment import ROOT


def tree_files(root: Path = ROOT) -> list[str]:
    """Paths within a checkout, as they are now.

    Raises:
        RuntimeError: it is no checkout.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{root} is no git checkout: {done.stderr.strip()}")
    return [name for name in sorted({*done.stdout.split("\0")}) if name and (root / name).is_file()]


def tree_bytes(root: Path = ROOT) -> int:
    """Of all of them."""
    return sum((root / name).stat().st_size for name in tree_files(root))


def head(root: Path = ROOT) -> str:
    """The commit that is checked out."""
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def copy_tree(target: Path, root: Path = ROOT) -> None:
    """Without git's own folder."""
    for name in tree_files(root):
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, file)
