"""Whole requests at the shapes of public models with random weights: pruned, unpruned, and transformers, in one run.

Nothing here fails because a backend is absent or breaks: what could not be measured is recorded with its reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.gpu.end_to_end.baselines import BASELINES
from scripts.gpu.end_to_end.checkpoint import write_checkpoint
from scripts.gpu.end_to_end.comparison import Competition, compare
from scripts.gpu.end_to_end.floors import allocated_cache_bytes
from scripts.gpu.end_to_end.shapes import UNPRUNED, ModelShape
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.machine.bandwidth import copy_bandwidth
from scripts.gpu.machine.environment import GPU_BACKENDS, device, missing_backends
from scripts.gpu.progress import Clock
from sts_export.bundle.manifest import Bundle
from sts_export.json_records import encode

PROMPT = "Describe the picture in detail."


@dataclass(frozen=True)
class Settings:
    """What is run of every shape.

    Args:
        budgets: as --budget takes them; None: those of each shape.  The unpruned bundle is always there, too.
        backends: of sts-export; without any, the baselines run alone.
        baselines: those that run.
        operators: library of operators for ONNX Runtime on CUDA; None: what sts-export finds by itself.
        plugins: library for TensorRT, likewise.
        scratch: folder for checkpoints and bundles, about the size of the weights; emptied after each shape.
    """

    budgets: tuple[str, ...] | None
    backends: tuple[str, ...]
    new_tokens: int
    repeats: int
    scratch: Path
    operators: Path | None = None
    plugins: Path | None = None
    baselines: tuple[str, ...] = BASELINES


def choose_backends(asked: Sequence[str] | None, *, toy: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """The backends to run, and those left out with the reason.

    Args:
        asked: None takes all GPU backends that can run here, or for toys ONNX Runtime's CPU provider.
    """
    if toy:
        return tuple(asked or ("onnxruntime",)), {}
    missing = missing_backends()
    wanted = GPU_BACKENDS if asked is None else tuple(asked)
    return tuple(name for name in wanted if name not in missing), {name: missing[name] for name in wanted if name in missing}


def run(
    shapes: Sequence[ModelShape], settings: Settings, clock: Clock, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """All shapes; ``save`` gets the record again and again, so that what was measured outlives what comes after it."""
    toy = any(shape.toy for shape in shapes)
    where = "cpu" if toy else device()
    record: dict[str, Any] = {
        "prompt": PROMPT,
        "settings": _shown(settings),
        "copy_bandwidth": copy_bandwidth(where),
        "shapes": {},
    }
    for shape in shapes:
        result: dict[str, Any] = {"error": None, "bundles": {}, "runs": []}
        record["shapes"][shape.name] = result
        folder = settings.scratch / shape.name
        try:
            _run_shape(shape, settings, folder, where, result, lambda: save(record), record["copy_bandwidth"], clock)
        except Exception as error:  # the next shape, and what was measured, must survive it
            traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        save(record)
    return record


def _run_shape(
    shape: ModelShape,
    settings: Settings,
    folder: Path,
    where: str,
    result: dict[str, Any],
    save: Callable[[], None],
    bandwidth: float,
    clock: Clock,
) -> None:
    """Fills ``result`` step by step."""
    checkpoint, image = folder / "checkpoint", folder / "picture.png"
    clock.say(f"{shape.name}: writing random weights")
    started = time.monotonic()
    folder.mkdir(parents=True)
    weights = write_checkpoint(checkpoint, shape, where)
    result["checkpoint"] = {"bytes": weights, "write_s": time.monotonic() - started}
    picture(shape.picture_side).save(image)
    bundles: dict[str, Bundle] = {}
    for budget in dict.fromkeys((*(settings.budgets or shape.budgets), UNPRUNED)):
        clock.say(f"{shape.name}: exporting at budget {budget}")
        bundles[budget], result["bundles"][budget] = export_linked(checkpoint, folder, budget)
    save()
    task = Task(str(image), PROMPT, settings.new_tokens, where, shape.dtype)
    operators = None if settings.operators is None else str(settings.operators)
    for backend in settings.backends or (None,):
        clock.say(f"{shape.name}: {backend or 'baselines alone'}")
        builds = build_engines(bundles, backend, clock, settings.plugins) if backend and backend.startswith("tensorrt") else {}
        ready = {budget: bundle for budget, bundle in bundles.items() if builds.get(budget, {}).get("error") is None}
        competition = Competition(backend, settings.baselines, ready, bundles, str(checkpoint), operators, weights, bandwidth)
        count = len(result["runs"])
        for found in compare(competition, task, settings.repeats, clock):
            result["runs"][count:] = [{**found, "builds": builds}]
            save()


def _shown(settings: Settings) -> dict[str, Any]:
    """For the record: without folders."""
    libraries = {name: path and path.name for name in ("operators", "plugins") for path in (getattr(settings, name),)}
    return {**asdict(settings), "scratch": None, **libraries}


def picture(side: int) -> Any:
    """A square PIL image."""
    from sts_export.media.synthetic import synthetic_image

    return synthetic_image(0).resize((side, side))


def export_linked(checkpoint: Path, folder: Path, budget: str) -> tuple[Bundle, dict[str, Any]]:
    """As ``sts-export --model FOLDER --budget BUDGET --weights link``."""
    from sts_export.exporting.exporter import ExportRequest, export

    started = time.monotonic()
    output = folder / f"bundle-{budget.replace('%', '-percent')}"
    bundle = export(ExportRequest(str(checkpoint), output=output, budget=budget, weights="link"))
    manifest = bundle.manifest
    return bundle, {
        "export_s": time.monotonic() - started,
        "pruning": encode(manifest.pruning),
        "capacities": asdict(manifest.capacities),
        "allocated_kv_bytes": allocated_cache_bytes(manifest),
    }


def build_engines(
    bundles: dict[str, Bundle], runtime: str, clock: Clock, plugins: Path | None = None
) -> dict[str, dict[str, Any]]:
    """``sts-export build`` for each bundle; budget -> seconds, and why it failed if it did."""
    builds: dict[str, dict[str, Any]] = {}
    for budget, bundle in bundles.items():
        clock.say(f"building {runtime} engines at budget {budget}")
        command = [sys.executable, "-P", "-m", "sts_export.cli", "build", str(bundle.folder), "--runtime", runtime]
        if runtime == "tensorrt" and plugins is not None:
            command += ["--plugins", str(plugins)]
        started, error = time.monotonic(), None
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=clock.remaining_s)
            if done.returncode:
                error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:500]
        except subprocess.TimeoutExpired:
            error = "out of time"
        builds[budget] = {"seconds": time.monotonic() - started, "error": error}
        if error:
            clock.say(f"{runtime}, budget {budget}: {error}")
    return builds
