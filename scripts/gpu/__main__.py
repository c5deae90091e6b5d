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

from scripts.gpu import end_to_end, kernels, tables, tensorrt_rtx_probe
from scripts.gpu.bandwidth import copy_bandwidth
from scripts.gpu.environment import architecture, describe, device
from scripts.gpu.limits import selection_shares
from scripts.gpu.progress import Clock
from scripts.gpu.records import PARTS, record_file, write_record
from scripts.gpu.shapes import BUDGETS, SHAPES, TOY_BUDGETS, ModelShape


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _names(known: Sequence[str]) -> Any:
    """An argparse type: names of ``known``, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = _list(text)
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        return names

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/gpu/run", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option("--output", type=Path, default=Path(), help="folder for the JSON files (default: the current one)")
    option("--parts", type=_names(PARTS), default=PARTS, help=f"default: {','.join(PARTS)}")
    option("--shapes", type=_names(list(SHAPES)), default=tuple(SHAPES), help=f"default: {','.join(SHAPES)}")
    option("--budgets", type=_list, help=f"default: {','.join(BUDGETS)}")
    option("--backends", type=_list, help="of sts-export (default: the GPU backends that can run here)")
    option("--new-tokens", type=int, default=32, help="tokens of every answer (default: 32)")
    option("--repeats", type=int, default=5, help="timed runs of every contender (default: 5)")
    option("--time-limit", type=float, default=570, help="seconds; what has not run by then is left out (default: 570)")
    option("--scratch", type=Path, help="folder for checkpoints, some 15 GB at a time (default: a temporary one)")
    option("--commit", help="commit of the sources (default: asks git)")
    option("--toy", action="store_true", help="tiny shapes on the CPU: tries the scripts, measures nothing")
    option("--directory", type=Path, default=Path(), help="where relative paths start (default: the current folder)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 where a check failed or a part broke, backends that are not installed aside; 2 for a wrong request."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.toy and device() != "cuda":
        parser.error("torch sees no CUDA device; --toy tries the scripts without one")
    clock = Clock(args.time_limit)
    environment = {**describe(args.commit), "toy": args.toy}
    files = {part: record_file(args.directory / args.output, environment, part, toy=args.toy) for part in PARTS}
    records: dict[str, dict[str, Any]] = {}
    failed = False
    for part in args.parts:
        file = files[part]

        def save(record: dict[str, Any], part: str = part, file: Path = file) -> None:
            records[part] = {**environment, **record}
            write_record(file, records[part])

        clock.say(f"{part} -> {file}")
        try:
            failed |= not (_kernels if part == "kernels" else _end_to_end)(args, clock, save)
        except Exception as error:  # the other part must run
            traceback.print_exc()
            save({**records.get(part, {}), "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
            failed = True
    if "end-to-end" in records and (measured := records.get("kernels") or _earlier(files["kernels"])):
        records["end-to-end"]["selection_shares"] = selection_shares(measured.get("timings", []), records["end-to-end"])
        write_record(files["end-to-end"], records["end-to-end"])
    clock.say("done")
    print(tables.format_tables(records))
    return int(failed)


def _earlier(file: Path) -> dict[str, Any]:
    """The record of a part that ran earlier on this day, on this machine, into the same folder."""
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def _kernels(args: argparse.Namespace, clock: Clock, save: Any) -> bool:
    return kernels.run(
        clock, save, architecture=None if args.toy else architecture(), bandwidth=lambda: copy_bandwidth(device())
    )


def _end_to_end(args: argparse.Namespace, clock: Clock, save: Any) -> bool:
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
        record = end_to_end.run(
            shapes, settings, clock, lambda record: save({**record, "left_out": missing, "tensorrt_rtx_probe": probe})
        )
    return all(
        shape["error"] is None and all(one["error"] is None for run in shape["runs"] for one in run["contenders"])
        for shape in record["shapes"].values()
    )


if __name__ == "__main__":
    sys.exit(main())
