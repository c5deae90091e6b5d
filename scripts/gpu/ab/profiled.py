"""What a bundle's time on the GPU goes to, kernel by kernel: explains a target that was missed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scripts.gpu.end_to_end.contenders import BundleRunner
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.pipelines import BundleTarget
from sts_export.measuring.turns import Runner

LENGTHS = (2, 34)  # new tokens: the difference is 32 decode steps
_MOST = 40


class ProfiledRunner(BundleRunner):
    """Runs as any; its description has ``kernels``: new tokens -> those that took longest, by torch's profiler."""

    def describe(self) -> dict[str, Any]:
        details, task = super().describe(), self._task
        kernels: dict[str, Any] = {}
        for length in LENGTHS:
            self._task = replace(task, new_tokens=length)
            try:
                super().run()  # once without: its shapes may be new
                kernels[str(length)] = kernel_times(super().run)
            except Exception as error:  # of the profiler or the driver; what was timed must not be lost for it
                kernels[str(length)] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self._task = task
        return {**details, "kernels": kernels}


def open_profiled(target: BundleTarget, task: Task) -> Runner:
    return ProfiledRunner(target, task)


def kernel_times(run: Callable[[], Any]) -> dict[str, Any]:
    """All that this process asks of the GPU meanwhile, not torch's alone.

    Returns:
        ``total_us`` and ``count`` of everything, and ``longest``: name, count and total_us of kernels and copies.
    """
    import torch
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        run()
    took: defaultdict[str, list[float]] = defaultdict(list)
    for event in found.events() or ():
        if event.device_type == DeviceType.CUDA:
            took[event.name].append(event.time_range.elapsed_us())
    longest = sorted(took.items(), key=lambda one: -sum(one[1]))
    return {
        "total_us": round(sum(map(sum, took.values())), 1),
        "count": sum(map(len, took.values())),
        "longest": [
            {"name": name[:200], "count": len(times), "total_us": round(sum(times), 1)} for name, times in longest[:_MOST]
        ],
    }
