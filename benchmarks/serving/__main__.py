"""A served bundle under load: `python -m benchmarks.serving`.

The server runs in a process of its own.  Clients ask mixed questions about mixed pictures with mixed lengths and budgets, and
give some answers up; every answer that is not given up is compared with the pipeline's own.  One row a number of clients.
Clients and server share the processors.

With ``--peer PYTHON`` the same load goes to OpenVINO GenAI behind a minimal server, too, in turn with ours at each number of
clients: the same pictures, prompts, lengths and clients that give up.  It prunes nothing of LLaVA.  Its answers are compared
with those that it gave to the same questions alone.  Requests then have no budgets of their own, and neither server reuses
what it knows of past requests.

Prefixes are reused with ``--reuse all`` only: answers are then rounded otherwise, and of quantized bundles not always the
same.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.serving import peer
from benchmarks.serving.clients import crowd
from benchmarks.serving.contenders import Contender, ours, theirs
from benchmarks.serving.rows import Row, comparison, ratios, row, table
from benchmarks.serving.server import REUSES, rss_mb
from benchmarks.shape import commit, write_speaking_checkpoint
from sts_export.files import replace_json


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="shape", help="alias or checkpoint; `shape` is the random 0.36 B LLaVA-1.5")
    parser.add_argument("--quantize", choices=("none", "int8", "int4"), default="int8")
    parser.add_argument("--budget", nargs="+", default=["64"], help="a bundle each, `none` is unpruned (default: 64)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of clients (default: 60)")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=24, help="different ones (default: 24)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N questions of 8 clients, watching the memory")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with OpenVINO GenAI and optimum-intel")
    parser.add_argument("--peer-batched-tokens", type=int, default=256, help="of one of its steps (default: GenAI's 256)")
    parser.add_argument("--reuse", choices=REUSES, help="of past requests (default: pictures; with a peer: none)")
    parser.add_argument("--json", type=Path)
    return parser


def measured(contenders: Sequence[Contender], clients: Sequence[int], seconds: float) -> dict[str, list[Row]]:
    """In turn at each number of clients, so that what else the machine does meets all of them."""
    rows: dict[str, list[Row]] = {each.name: [] for each in contenders}
    for count in clients:
        for each in contenders:
            seen = crowd(each.address, each.questions, count, seconds=seconds, cancel=11)
            found = row(count, seen, rss_mb(each.process))
            rows[each.name].append(found)
            print(f"{each.name}\n{table([found], against=rows[each.name][0])}", flush=True)
            for line in seen.failed[:3]:
                print(line)
    return rows


def soaked(contender: Contender, count: int) -> list[dict[str, float]]:
    """Every tenth of so many requests: how they ended, and the resident memory after them."""
    found = []
    for tenth in range(10):
        seen = crowd(contender.address, contender.questions, 8, each=count // 80, cancel=11)
        memory = rss_mb(contender.process)
        ends = {"right": seen.right, "wrong": seen.wrong, "cancelled": seen.cancelled, "failed": len(seen.failed)}
        found.append({"requests": (tenth + 1) * (count // 80) * 8, "rss_mb": memory, **ends})
        print(found[-1], flush=True)
        for line in seen.failed[:3]:
            print(line)
    return found


def main() -> None:
    args = make_parser().parse_args()
    args.reuse = args.reuse or ("none" if args.peer else "pictures")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        model = args.model
        if model == "shape":
            write_speaking_checkpoint(Path(model := str(Path(scratch) / "checkpoint")))
        contenders = [stack.enter_context(ours(args, model, budget, Path(scratch))) for budget in args.budget]
        if args.peer:
            contenders.append(stack.enter_context(theirs(args, model, Path(scratch))))
        for each in contenders:
            print(f"{each.name} is ready", flush=True)
            crowd(each.address, each.questions, 2, each=4)  # requests that run together, for the first time
        rows = measured(contenders, args.clients, args.seconds)
        memory = soaked(contenders[0], args.soak) if args.soak else []
    for name, its in rows.items():
        print(f"{name}\n{table(its)}")
    if args.peer:
        print(comparison(rows, peer.NAME))
    if args.json:
        replace_json(args.json, record(args, rows, memory, peer.versions(args.peer) if args.peer else {}))


def record(
    args: argparse.Namespace, rows: dict[str, list[Row]], memory: list[dict[str, float]], versions: dict[str, str]
) -> dict[str, Any]:
    """What the run was, and every figure; ``rows`` are those of the first budget, ``versions`` the peer's."""
    name, *_ = rows
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "processors": os.cpu_count(),
        "options": {name: value for name, value in vars(args).items() if name not in ("json", "peer")},
        "rows": rows[name],
        "soak": memory,
    }
    if len(rows) > 1:
        found["contenders"] = rows
    if args.peer:
        found["peer"] = {"name": peer.NAME, "versions": versions}
        found["ratios"] = {name: ratios(its, rows[peer.NAME]) for name, its in rows.items() if name != peer.NAME}
    return found


if __name__ == "__main__":
    main()
