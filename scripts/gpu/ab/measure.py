"""One bundle, run in every way there is to choose from on ONNX Runtime CUDA."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.gpu.end_to_end.checkpoint import write_checkpoint
from scripts.gpu.end_to_end.comparison import bundle_contender, rules_for
from scripts.gpu.end_to_end.measure import PROMPT, export_linked, picture
from scripts.gpu.end_to_end.shapes import ModelShape
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.pipelines import NO_OPERATORS, BundleTarget
from scripts.gpu.progress import Clock
from sts_export.backends.choice import CPU, CUDA
from sts_export.measuring.turns import Contender, take_turns

_SDPA_KERNELS = {"default": "0", "flash or efficient": "3"}  # bits: 1 is flash, 2 efficient; 0 leaves it to ONNX Runtime


def ways(bundle: Path, device: str, operators: Path | None) -> dict[str, BundleTarget]:
    """Name -> how it is run: without and with the library of operators, and each with every choice of attention kernels.

    Args:
        device: on the CPU there is one way alone.
        operators: the library; None leaves those with it out.
    """
    if device == "cpu":
        return {"cpu": BundleTarget(str(bundle), CPU)}
    libraries = {"": NO_OPERATORS, **({} if operators is None else {", operators": str(operators)})}
    return {
        f"sdpa {kernel}{with_operators}": BundleTarget(str(bundle), CUDA, library, value)
        for with_operators, library in libraries.items()
        for kernel, value in _SDPA_KERNELS.items()
    }


def _profiled(name: str, target: BundleTarget) -> Contender:
    """Its process needs torch for the profiler; CUDA's libraries are then torch's."""
    return Contender(name, "scripts.gpu.ab.profiled:open_profiled", target, ("torch",))


def run(
    shape: ModelShape,
    budget: str,
    clock: Clock,
    save: Callable[[dict[str, Any]], None],
    scratch: Path,
    *,
    device: str,
    operators: Path | None = None,
    new_tokens: int = 8,
    repeats: int = 5,
) -> None:
    """Export the bundle and time it in all ways, in turn.

    Args:
        save: gets the record when all ways are timed, and once more with ``profiled``, the last way's kernels.
        scratch: folder with room for the weights; what is written there is removed.
        device: ``cuda`` or ``cpu``.
    """
    folder = scratch / f"ab-{shape.name}"
    folder.mkdir(parents=True)
    try:
        clock.say(f"{shape.name}: writing random weights")
        write_checkpoint(folder / "checkpoint", shape, device)
        clock.say(f"{shape.name}: exporting at budget {budget}")
        bundle, _ = export_linked(folder / "checkpoint", folder, budget)
        image = folder / "picture.png"
        picture(shape.picture_side).save(image)
        task = Task(str(image), PROMPT, new_tokens, device, shape.dtype)
        targets = ways(bundle.folder, device, operators)
        contenders = [bundle_contender(name, target, "scripts.gpu.ab.runner:open_lengths") for name, target in targets.items()]
        outcomes = take_turns(contenders, task, rules_for(task, repeats, clock))
        rows = [{**asdict(outcome), "medians": outcome.medians()} for outcome in outcomes]
        record = {"shape": shape.name, "budget": budget, "operators": operators and operators.name, "ways": rows}
        save(record)
        # Alone: with the others it would not fit into the device's memory.
        last, target = list(targets.items())[-1]
        (profiled,) = take_turns([_profiled(last, target)], task, rules_for(task, 1, clock))
        save({**record, "profiled": asdict(profiled)})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
