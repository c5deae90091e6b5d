"""The libraries and programs that are built beforehand for the GPU there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from scripts.gpu.machine.environment import ROOT

NAMES = ("check_kernels", "sts_conformance", "libsts_onnxruntime.so", "libsts_plugins.so", "libsts_kernels.so")


def build(folder: Path, roots: dict[str, Path], architectures: str, jobs: int) -> str | None:
    """scripts/build_plugins into a folder.

    Args:
        roots: its options for headers -> folder.

    Returns:
        The last line of why it did not build everything; None if nothing is said to be missing.
    """
    command = [str(ROOT / "scripts" / "build_plugins"), "--output", str(folder), "--architectures", architectures]
    command += ["--jobs", str(jobs)]
    for option, root in roots.items():
        command += [option, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"scripts/build_plugins: exit code {done.returncode}"])[-1]


def collect(built: Path | None, folder: Path) -> list[str]:
    """Copy what there is of NAMES; returns those that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for name in NAMES:
        if built is not None and (built / name).is_file():
            shutil.copy(built / name, folder / name)
            (folder / name).chmod(0o755)
        else:
            missing.append(name)
    return missing
