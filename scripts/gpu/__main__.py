"""``scripts/gpu/run``: arguments in, parts run one after the other, JSON files and a table out."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.gpu.arguments import parser
from scripts.gpu.machine.environment import GPU_BACKENDS, describe, device
from scripts.gpu.parts import run_part
from scripts.gpu.progress import Clock
from scripts.gpu.records import PARTS, latest_record, record_file, write_record
from scripts.gpu.reports import tables
from scripts.gpu.reports.failures import failures
from scripts.gpu.reports.limits import selection_shares
from scripts.gpu.reports.targets import targets


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 where a check, a build or a contender failed, backends that are not installed aside; 2 for a wrong
    request.
    """
    args = _request(argv)
    clock = Clock(args.time_limit)
    environment = {**describe(args.commit), "toy": args.toy}
    folder = args.directory / args.output
    files = {part: record_file(folder, environment, part, toy=args.toy, label=args.label) for part in PARTS}
    records: dict[str, dict[str, Any]] = {}
    for part in args.parts:
        file = files[part]

        def save(record: dict[str, Any], part: str = part, file: Path = file) -> None:
            records[part] = {**environment, **record}
            write_record(file, records[part])

        clock.say(f"{part} -> {file}")
        try:
            run_part(part, args, clock, save)
        except Exception as error:  # the other parts must run
            traceback.print_exc()
            save({**records.get(part, {}), "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
    if "end-to-end" in records:
        measured = records.get("kernels") or latest_record(folder, "kernels", toy=args.toy)
        records["end-to-end"]["selection_shares"] = selection_shares(measured.get("timings", []), records["end-to-end"])
    for part, record in records.items():
        record["targets"] = [] if args.toy else targets(part, record)
        write_record(files[part], record)
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
    if args.binaries and not (args.directory / args.binaries).is_dir():
        reader.error(f"--binaries {args.binaries} is no folder")
    if device() != "cuda":
        if not args.toy:
            reader.error("there is no CUDA GPU here (torch sees none); --toy tries the scripts without one")
        if asked := [name for name in args.backends or () if name in GPU_BACKENDS]:
            reader.error(f"there is no CUDA GPU here for {', '.join(asked)}; --toy without --backends runs on the CPU")
    return args


if __name__ == "__main__":
    sys.exit(main())
