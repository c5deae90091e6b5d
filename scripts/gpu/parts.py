"""The parts of a run: each can run alone, in any order, and needs nothing that another one left."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.gpu.ab import measure as ab
from scripts.gpu.end_to_end import measure as end_to_end
from scripts.gpu.end_to_end.shapes import ModelShape
from scripts.gpu.kernels import measure as kernels
from scripts.gpu.kernels.profile import profile
from scripts.gpu.kernels.programs import OPERATORS_LIBRARY, TENSORRT_LIBRARY, Programs, brought, obtain
from scripts.gpu.kernels.sanitizer import sanitize_all
from scripts.gpu.machine import tensorrt_rtx_probe
from scripts.gpu.machine.bandwidth import copy_bandwidth
from scripts.gpu.machine.environment import ROOT, architecture, device
from scripts.gpu.progress import Clock
from scripts.gpu.smoke import measure as smoke

Save = Callable[[dict[str, Any]], None]
_BUILT = ROOT / "build" / "plugins"


def run_part(part: str, args: argparse.Namespace, clock: Clock, save: Save) -> None:
    """Run one of PARTS; ``save`` gets its record again and again."""
    scratch = None if args.scratch is None else args.directory / args.scratch
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        _PARTS[part](args, clock, save, Path(folder))


def _kernels(args: argparse.Namespace, clock: Clock, save: Save, scratch: Path) -> None:
    programs = _programs(args, clock, scratch)
    kernels.measure(clock, save, programs, on_gpu=not args.toy, bandwidth=lambda: copy_bandwidth(device()))


def _sanitize(args: argparse.Namespace, clock: Clock, save: Save, scratch: Path) -> None:
    sanitize_all(clock, save, _programs(args, clock, scratch), args.tools, on_gpu=not args.toy)


def _profile(args: argparse.Namespace, clock: Clock, save: Save, scratch: Path) -> None:
    profile(clock, save, _programs(args, clock, scratch), on_gpu=not args.toy)


def _smoke(args: argparse.Namespace, clock: Clock, save: Save, scratch: Path) -> None:
    where = "cpu" if args.toy else device()
    smoke.run(clock, save, scratch, device=where, operators=_library(args, OPERATORS_LIBRARY))


def _end_to_end(args: argparse.Namespace, clock: Clock, save: Save, scratch: Path) -> None:
    backends, missing = end_to_end.choose_backends(args.backends, toy=args.toy)
    probe = None
    if "tensorrt-rtx" in backends:
        clock.say("tensorrt-rtx: building and running a small engine")
        probe = tensorrt_rtx_probe.probe()
        if probe["error"] is not None:
            backends = tuple(name for name in backends if name != "tensorrt-rtx")
            missing["tensorrt-rtx"] = probe["error"]
    for name, reason in missing.items():
        clock.say(f"left out: {name}: {reason}")
    settings = end_to_end.Settings(
        budgets=args.budgets,
        backends=backends,
        new_tokens=args.new_tokens,
        repeats=args.repeats,
        scratch=scratch,
        operators=_library(args, OPERATORS_LIBRARY),
        plugins=_library(args, TENSORRT_LIBRARY),
        baselines=args.baselines,
    )
    end_to_end.run(
        _shapes(args), settings, clock, lambda record: save({**record, "left_out": missing, "tensorrt_rtx_probe": probe})
    )


def _ab(args: argparse.Namespace, clock: Clock, save: Save, scratch: Path) -> None:
    """At the first of the shapes and budgets."""
    shape = _shapes(args)[0]
    budget = (args.budgets or shape.budgets)[0]
    where = "cpu" if args.toy else device()
    library = _library(args, OPERATORS_LIBRARY)
    ab.run(shape, budget, clock, save, scratch, device=where, operators=library, repeats=args.repeats)


_PARTS: dict[str, Callable[[argparse.Namespace, Clock, Save, Path], None]] = {
    "kernels": _kernels,
    "sanitize": _sanitize,
    "profile": _profile,
    "smoke": _smoke,
    "end-to-end": _end_to_end,
    "ab": _ab,
}


def _shapes(args: argparse.Namespace) -> list[ModelShape]:
    return [ModelShape(name, args.toy) for name in args.shapes]


def _programs(args: argparse.Namespace, clock: Clock, scratch: Path) -> Programs:
    on_gpu = None if args.toy else architecture()
    return obtain(scratch, clock, architecture=on_gpu, binaries=_binaries(args))


def _binaries(args: argparse.Namespace) -> Path | None:
    return None if args.binaries is None else args.directory / args.binaries


def _library(args: argparse.Namespace, name: str) -> Path | None:
    """What was brought, or what scripts/build_plugins made in this checkout: sts-export may be a copy that finds neither."""
    return brought(_binaries(args) or _BUILT, name)
