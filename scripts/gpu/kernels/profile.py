"""Nsight Compute over the kernels, where there is ncu and the machine lets it count."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from scripts.gpu.kernels.programs import Programs, run
from scripts.gpu.progress import Clock

# The long kernels of each stage.  Clocks stay as they are: nothing here changes a setting.
_KERNELS = ("tileKernel", "greedyKernel", "logitKernel", "choiceKernel")
_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis")
_MOST_TEXT = 500_000


def profile(clock: Clock, save: Callable[[dict[str, Any]], None], programs: Programs, *, on_gpu: bool) -> None:
    """Profile check_kernels: every shape that is timed, once.

    Args:
        save: gets the record after every kernel: ``text``, what ncu printed, or ``reason``.
    """
    record: dict[str, Any] = {"build": programs.build, "profiles": {}}
    save(record)
    for name in _KERNELS if programs.check is not None else ():
        clock.say(f"ncu, {name}")
        record["profiles"][name] = _profile(clock, programs, name) if on_gpu else _nothing("it needs a GPU")
        save(record)


def _profile(clock: Clock, programs: Programs, name: str) -> dict[str, Any]:
    if shutil.which("ncu") is None:
        return _nothing("ncu is not installed")
    options = ["--clock-control=none", f"--kernel-name=regex:{name}"]
    options += [f"--section={section}" for section in _SECTIONS]
    started = time.monotonic()
    done = run(["ncu", *options, str(programs.check), "--once"], clock)
    text = done.stdout + done.stderr
    reason = None if name in text and "Section:" in text else f"nothing was profiled, exit code {done.returncode}"
    return {"reason": reason, "seconds": time.monotonic() - started, "text": text[-_MOST_TEXT:]}


def _nothing(reason: str) -> dict[str, Any]:
    return {"reason": reason, "seconds": 0.0, "text": ""}
