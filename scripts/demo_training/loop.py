"""The loop of both stages: logs, saves, and goes on where it stopped."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from scripts.demo_training.optimizer import Optimizer
from sts_export.files import new_file

Step = Callable[[int], tuple[Tensor, dict[str, float]]]
LOG_EVERY, SAVE_EVERY = 50, 250


def run(
    name: str,
    trained: nn.Module,
    optimizer: Optimizer,
    step: Step,
    file: Path,
    report: Callable[[], str] | None = None,
    later: Sequence[Path] = (),
) -> None:
    """Train until the schedule's end.

    Args:
        trained: whose state `file` holds, beside the optimizer's and the number of steps.
        step: number of the step -> loss and what to log of it.  All that it draws must follow from the number.
        report: called whenever the state was saved; its line is printed.
        later: states of stages that begin where this one ends; they are dropped if it is not at its end.
    """
    steps = optimizer.schedule.steps
    first = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["steps"])
    if first < steps:
        for stale in later:
            stale.unlink(missing_ok=True)
    seen: defaultdict[str, list[float]] = defaultdict(list)
    bar = tqdm(total=steps, desc=name, initial=first)
    for number in range(first, steps):
        loss, logged = step(number)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(number)
        for key, value in {"loss": loss.item(), **logged}.items():
            if not math.isnan(value):
                seen[key].append(value)
        bar.update()
        if (number + 1) % LOG_EVERY == 0:
            bar.write(f"{name} {number + 1}: " + " ".join(f"{k} {np.mean(v):.3f}" for k, v in seen.items()))
            seen.clear()
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == steps:
            with new_file(file) as stream:
                state = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict(), "steps": number + 1}
                torch.save(state, stream)
            if report:
                bar.write(report())
    bar.close()
