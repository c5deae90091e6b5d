"""A served bundle under load: `python -m benchmarks.serving`.

The server runs in a process of its own.  Clients ask mixed questions about mixed pictures with mixed lengths and budgets, and
give some answers up; every answer that is not given up is compared with the pipeline's own.  One row a number of clients.
Clients and server share the processors.

With ``--peer PYTHON`` the same load goes to OpenVINO GenAI behind a minimal server, too, in turn with ours at each number of
clients: the same pictures, prompts, lengths and clients that give up.  It prunes nothing of LLaVA.  Its answers are compared
with those that it gave to the same questions alone.  Requests then have no budgets of their own, and neither server reuses
what it knows of past requests.

With ``--triton`` the first bundle is in a real Triton, too, under the same load in turn with ours: by the repository that
`sts-export triton --link` writes, and asked by Triton's client over gRPC, a stream each question.

Prefixes are reused with ``--reuse all`` only: answers are then rounded otherwise, and of quantized bundles not always the
same.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.serving import peer
from benchmarks.serving.clients import crowd
from benchmarks.serving.contenders import TRITON, Contender, exported, in_triton, ours, theirs
from benchmarks.serving.rows import Row, comparison, ratios, row, table
from benchmarks.serving.server import REUSES, pss_mb, rss_mb
from benchmarks.shape import commit, write_speaking_checkpoint
from sts_export.files import replace_json
from sts_export.testing.triton.home import missing


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
    parser.add_argument("--give-up", type=int, default=11, metavar="N", help="every N-th answer, half-way (default: 11)")
    parser.add_argument("--triton", action="store_true", help="the first bundle in Triton, too; scripts/triton_server/fetch")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with OpenVINO GenAI and optimum-intel")
    parser.add_argument("--peer-batched-tokens", type=int, default=256, help="of one of its steps (default: GenAI's 256)")
    parser.add_argument("--reuse", choices=REUSES, help="of past requests (default: pictures; with a peer: none)")
    parser.add_argument("--json", type=Path)
    return parser


def measured(contenders: Sequence[Contender], clients: Sequence[int], seconds: float, give_up: int) -> dict[str, list[Row]]:
    """In turn at each number of clients, so that what else the machine does meets all of them."""
    rows: dict[str, list[Row]] = {each.name: [] for each in contenders}
    for count in clients:
        for each in contenders:
            seen = crowd(each.address, each.questions, count, seconds=seconds, cancel=give_up, transport=each.transport)
            found = row(count, seen, rss_mb(each.pid))
            rows[each.name].append(found)
            print(f"{each.name}\n{table([found], against=rows[each.name][0])}", flush=True)
            for line in seen.failed[:3]:
                print(line)
    return rows


def soaked(contenders: Sequence[Contender], count: int, give_up: int = 11) -> dict[str, list[dict[str, float]]]:
    """Every tenth of so many requests to each, in turn: how they ended, and the memory after them."""
    found: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
    for tenth in range(10):
        for each in contenders:
            seen = crowd(each.address, each.questions, 8, each=count // 80, cancel=give_up, transport=each.transport)
            memory = {"rss_mb": rss_mb(each.pid), "pss_mb": pss_mb(each.pid)}
            ends = {"right": seen.right, "wrong": seen.wrong, "cancelled": seen.cancelled, "failed": len(seen.failed)}
            found[each.name].append({"requests": (tenth + 1) * (count // 80) * 8, **memory, **ends})
            print(each.name, found[each.name][-1], flush=True)
            for line in seen.failed[:3]:
                print(line)
    return found


def main() -> None:
    args = make_parser().parse_args()
    args.reuse = args.reuse or ("none" if args.peer else "pictures")
    if args.triton and (reason := missing()):
        raise SystemExit(f"--triton: {reason}")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        model = args.model
        if model == "shape":
            write_speaking_checkpoint(Path(model := str(Path(scratch) / "checkpoint")))
        bundles = [exported(args, model, budget, Path(scratch)) for budget in args.budget]
        contenders = [stack.enter_context(ours(args, bundle)) for bundle in bundles]
        soaking = contenders[:1]
        if args.triton:
            contenders.append(stack.enter_context(in_triton(args, bundles[0], Path(scratch))))
            soaking.append(contenders[-1])
        if args.peer:
            contenders.append(stack.enter_context(theirs(args, model, Path(scratch))))
        for each in contenders:
            print(f"{each.name} is ready", flush=True)
            # requests that run together, for the first time
            crowd(each.address, each.questions, 2, each=4, transport=each.transport)
        rows = measured(contenders, args.clients, args.seconds, args.give_up)
        memory = soaked(soaking, args.soak, args.give_up) if args.soak else {}
        versions = {each.name: each.versions for each in contenders}
    for name, its in rows.items():
        print(f"{name}\n{table(its)}")
    if args.peer:
        print(comparison(rows, peer.NAME))
    if args.triton:
        first = contenders[0].name
        print(comparison({TRITON: rows[TRITON], first: rows[first]}, first))
    if args.json:
        replace_json(args.json, record(args, rows, memory, versions))


def record(
    args: argparse.Namespace,
    rows: Mapping[str, list[Row]],
    memory: Mapping[str, list[dict[str, float]]],
    versions: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """What the run was, and every figure; ``rows`` and ``soak`` are those of the first budget, ``versions`` the contenders'."""
    name, *_ = rows
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "processors": os.cpu_count(),
        "options": {name: value for name, value in vars(args).items() if name not in ("json", "peer")},
        "rows": rows[name],
        "soak": memory.get(name, []),
    }
    if len(rows) > 1:
        found["contenders"] = rows
    if args.peer:
        found["peer"] = {"name": peer.NAME, "versions": versions[peer.NAME]}
        found["ratios"] = {name: ratios(its, rows[peer.NAME]) for name, its in rows.items() if name != peer.NAME}
    if args.triton:
        found["triton"] = {
            "name": TRITON,
            "versions": versions[TRITON],
            "against": name,
            "ratios": ratios(rows[TRITON], rows[name]),
            "soak": memory.get(TRITON, []),
        }
    return found


if __name__ == "__main__":
    main()
