"""The programs that check the kernels: brought ready made, or built here by the recipe of the shipped library."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu.machine.environment import ROOT
from scripts.gpu.progress import Clock

PLUGINS = ROOT / "plugins"
CHECK, CONFORMANCE = "check_kernels", "sts_conformance"
TENSORRT_LIBRARY, OPERATORS_LIBRARY = "libsts_plugins.so", "libsts_onnxruntime.so"


@dataclass(frozen=True)
class Programs:
    """What there is.

    Args:
        check: plugins/kernels/check; None if it could not be built.
        build: how it came about: command without folders, seconds, and why it failed if it did.
        binaries: folder that may have sts_conformance and the libraries, which are not built here.
    """

    check: Path | None
    build: dict[str, Any]
    binaries: Path | None = None

    def brought(self, name: str) -> Path | None:
        """A file of ``binaries``, if it is there."""
        return brought(self.binaries, name)


def brought(binaries: Path | None, name: str) -> Path | None:
    """A file of a folder of binaries, if there is one."""
    file = binaries / name if binaries is not None else None
    return file if file is not None and file.is_file() else None


def obtain(scratch: Path, clock: Clock, *, architecture: str | None, binaries: Path | None = None) -> Programs:
    """Take check_kernels from ``binaries``, or build it.

    Args:
        architecture: of the GPU, such as ``sm_90``; None: the host's version alone, by a plain C++ compiler.
    """
    if (ready := brought(binaries, CHECK)) is not None:
        return Programs(ready, {"command": "brought ready made", "seconds": 0.0, "error": None}, binaries)
    clock.say(f"building {CHECK}")
    program = scratch / CHECK
    started, error = time.monotonic(), None
    commands = build_commands(scratch, architecture)
    for command in commands:
        if shutil.which(command[0]) is None:
            error = f"{command[0]} is not installed"
        else:
            done = run(command, clock)
            error = None if done.returncode == 0 else (done.stderr or done.stdout)[-1000:]
        if error is not None:
            break
    shown = "; ".join(" ".join(command) for command in commands).replace(str(scratch), ".").replace(f"{ROOT}/", "")
    report = {"command": shown, "seconds": time.monotonic() - started, "error": error}
    return Programs(None if error else program, report, binaries)


def build_commands(folder: Path, architecture: str | None) -> list[list[str]]:
    """They put check_kernels into ``folder``.

    Args:
        architecture: of the GPU, such as ``sm_90``; None: the host's version alone.
    """
    if architecture is None:
        host = [str(file) for file in sorted((PLUGINS / "kernels" / "host").glob("*.cpp"))]
        main = str(PLUGINS / "kernels" / "check" / "check_kernels.cu")
        include = f"-I{PLUGINS / 'kernels'}"
        flags = ["-std=c++17", "-O2", "-ffp-contract=off", include]
        return [["g++", *flags, "-x", "c++", main, *host, "-o", str(folder / CHECK)]]
    number = architecture.removeprefix("sm_")
    return [
        ["cmake", "-S", str(PLUGINS), "-B", str(folder), f"-DSTS_CUDA_ARCHITECTURES={number}"],
        ["cmake", "--build", str(folder), "--target", CHECK, "--parallel", str(os.cpu_count() or 1)],
    ]


def run(command: Sequence[str], clock: Clock) -> subprocess.CompletedProcess[str]:
    """Out of time is a failure with that text."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(clock.remaining_s, 1.0))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "out of time")
