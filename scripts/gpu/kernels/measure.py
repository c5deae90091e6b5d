"""The kernels on this machine: checked against the host's version, timed against their floor; the plugins driven.

The program that does the work is plugins/kernels/check; it prints one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from scripts.gpu.kernels.conformance import check_plugins
from scripts.gpu.kernels.programs import Programs, run
from scripts.gpu.progress import Clock
from scripts.gpu.reports.limits import timings

_RECORDED = ("device", "dependent_launches", "checks", "failures", "error")


def measure(
    clock: Clock, save: Callable[[dict[str, Any]], None], programs: Programs, *, on_gpu: bool, bandwidth: Callable[[], float]
) -> None:
    """Check and time the kernels, then drive the plugins.

    Args:
        save: gets the record after every step.
        on_gpu: else the host's version alone is checked.
        bandwidth: measures the device's, in bytes per second.
    """
    record: dict[str, Any] = {"build": programs.build, "checks": {}, "timings": [], "conformance": {}}
    save(record)
    if programs.check is None:
        return
    clock.say("checking and timing" if on_gpu else "checking the host's version")
    printed = check([str(programs.check), *([] if on_gpu else ["--host-only"])], clock)
    record["checks"] = {name: printed.get(name) for name in _RECORDED}
    if measured := printed.get("timings_us"):
        record["copy_bandwidth"] = bandwidth()
        record["timings"] = timings(measured, record["copy_bandwidth"])
    save(record)
    clock.say("driving the plugins")
    record["conformance"] = check_plugins(programs, clock, on_gpu=on_gpu)
    save(record)


def check(command: Sequence[str], clock: Clock) -> dict[str, Any]:
    """What check_kernels prints, with ``error`` where it printed nothing or stopped without naming a failure."""
    done = run(command, clock)
    try:
        printed: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        text = (done.stderr or done.stdout).strip()[-1000:]
        return {"error": f"no JSON, exit code {done.returncode}: {text}"}
    if done.returncode and not printed.get("failures"):
        printed["error"] = f"exit code {done.returncode}: {done.stderr.strip()[-1000:]}"
    return printed
