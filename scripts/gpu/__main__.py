"""``scripts/gpu/run``: arguments in, parts run one after the other, JSON files and a table out."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.gpu import tables, tensorrt_rtx_probe
from scripts.gpu.arguments import parser
from scripts.gpu.end_to_end import measure as end_to_end
from scripts.gpu.end_to_end.shapes import BUDGETS, TOY_BUDGETS, ModelShape
from scripts.gpu.failures import failures
from scripts.gpu.kernels import measure as kernels
from scripts.gpu.limits import selection_shares
from scripts.gpu.machine.bandwidth import copy_bandwidth
from scripts.gpu.machine.environment import GPU_BACKENDS, architecture, describe, device
from scripts.gpu.progress import Clock
from scripts.gpu.records import PARTS, record_file, write_record


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 where a check, a build or a contender failed, backends that are not installed aside; 2 for a wrong
    request.
    """
    args = _request(argv)
    clock = Clock(args.time_limit)
    environment = {**describe(args.commit), "toy": args.toy}
    files = {part: record_file(args.directory / args.output, environment, part, toy=args.toy) for part in PARTS}
    records: dict[str, dict[str, Any]] = {}
    for part in args.parts:
        file = files[part]

        def save(record: dict[str, Any], part: str = part, file: Path = file) -> None:
            records[part] = {**environment, **record}
            write_record(file, records[part])

        clock.say(f"{part} -> {file}")
        try:
            (_kernels if part == "kernels" else _end_to_end)(args, clock, save)
        except Exception as error:  # the other part must run
            traceback.print_exc()
            save({**records.get(part, {}), "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
    if "end-to-end" in records and (measured := records.get("kernels") or _earlier(files["kernels"])):
        records["end-to-end"]["selection_shares"] = selection_shares(measured.get("timings", []), records["end-to-end"])
        write_record(files["end-to-end"], records["end-to-end"])
    clock.say("done")
    print(tables.format_tables(records))
    failed = failures(records)
    for line in failed:
        print(line)
    return int(bool(failed))


def _request(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, as far as this machine can do what they ask."""
    reader = parser()
    args = reader.parse_args(argv)
    if args.scratch and not (args.directory / args.scratch).is_dir():
        reader.error(f"--scratch {args.scratch} is no folder")
    if device() != "cuda":
        if not args.toy:
            reader.error("there is no CUDA GPU here (torch sees none); --toy tries the scripts without one")
        if asked := [name for name in args.backends or () if name in GPU_BACKENDS]:
            reader.error(f"there is no CUDA GPU here for {', '.join(asked)}; --toy without --backends runs on the CPU")
    return args


def _earlier(file: Path) -> dict[str, Any]:
    """The record of a part that ran earlier on this day, on this machine, into the same folder."""
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def _kernels(args: argparse.Namespace, clock: Clock, save: Any) -> None:
    kernels.run(clock, save, architecture=None if args.toy else architecture(), bandwidth=lambda: copy_bandwidth(device()))


def _end_to_end(args: argparse.Namespace, clock: Clock, save: Any) -> None:
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
    budgets = args.budgets or (TOY_BUDGETS if args.toy else BUDGETS)
    with tempfile.TemporaryDirectory(dir=args.scratch and args.directory / args.scratch) as scratch:
        settings = end_to_end.Settings(budgets, backends, args.new_tokens, args.repeats, Path(scratch))
        shapes = [ModelShape(name, args.toy) for name in args.shapes]
        end_to_end.run(
            shapes, settings, clock, lambda record: save({**record, "left_out": missing, "tensorrt_rtx_probe": probe})
        )


if __name__ == "__main__":
    sys.exit(main())
