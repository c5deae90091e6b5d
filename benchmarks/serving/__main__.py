"""A served bundle under load: `python -m benchmarks.serving`.

The server runs in a process of its own.  Clients ask mixed questions about mixed pictures with mixed lengths and budgets, and
give some answers up; every answer that is not given up is compared with the pipeline's own.  One row a number of clients.
Clients and server share the processors.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.clients import Seen, crowd
from benchmarks.serving.questions import questions
from benchmarks.serving.server import rss_mb, started
from benchmarks.shape import commit, write_speaking_checkpoint
from sts_export import Pipeline
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import replace_json

MODEL = "served"


def row(clients: int, seen: Seen, memory: float) -> dict[str, Any]:
    """Rates, and percentiles in milliseconds."""
    first, gaps = (np.array(values or [0.0]) * 1e3 for values in (seen.first, seen.gaps))
    return {
        "clients": clients,
        "seconds": seen.seconds,
        "right": seen.right,
        "wrong": seen.wrong,
        "cancelled": seen.cancelled,
        "failed": len(seen.failed),
        "answers_per_s": seen.right / seen.seconds,
        "tokens_per_s": seen.tokens / seen.seconds,
        "first_token_ms": {"p50": float(np.percentile(first, 50)), "p99": float(np.percentile(first, 99))},
        "inter_token_ms": {"p50": float(np.percentile(gaps, 50)), "p99": float(np.percentile(gaps, 99))},
        "rss_mb": memory,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a row."""
    head = f"{'clients':>7}{'tokens/s':>10}{'x':>6}{'answers':>9}{'wrong':>7}{'given up':>10}{'failed':>8}"
    lines = [head + f"{'first ms p50':>14}{'p99':>8}{'gap ms p50':>12}{'p99':>8}{'RSS MB':>8}"]
    for one in rows:
        ratio = one["tokens_per_s"] / rows[0]["tokens_per_s"] if rows[0]["tokens_per_s"] else 0.0
        first, gap = one["first_token_ms"], one["inter_token_ms"]
        line = f"{one['clients']:>7}{one['tokens_per_s']:>10.1f}{ratio:>6.2f}{one['right']:>9}{one['wrong']:>7}"
        line += f"{one['cancelled']:>10}{one['failed']:>8}{first['p50']:>14.0f}{first['p99']:>8.0f}"
        lines.append(line + f"{gap['p50']:>12.1f}{gap['p99']:>8.1f}{one['rss_mb']:>8.0f}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="shape", help="alias or checkpoint; `shape` is the random 0.36 B LLaVA-1.5")
    parser.add_argument("--quantize", choices=("none", "int8", "int4"), default="int8")
    parser.add_argument("--budget", default="64")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of clients (default: 60)")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=24, help="different ones (default: 24)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N questions of 8 clients, watching the memory")
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if model == "shape":
            write_speaking_checkpoint(Path(model := str(Path(scratch) / "checkpoint")))
        quantize = None if args.quantize == "none" else args.quantize
        request = ExportRequest(model, Path(scratch) / "bundle", args.budget, quantize=quantize, max_new_tokens=args.new_tokens)
        bundle = export(request).folder
        with Pipeline(bundle) as pipeline:
            asked = questions(pipeline, MODEL, args.questions, args.new_tokens)
        options = ["--model-name", MODEL, "--slots", str(args.slots)]
        with started(bundle, options) as (process, address):
            crowd(address, asked, 2, each=4)  # the engine's and the page cache's first time
            rows = []
            for clients in args.clients:
                seen = crowd(address, asked, clients, seconds=args.seconds, cancel=11)
                rows.append(row(clients, seen, rss_mb(process)))
                print(table(rows[:1] + rows[-1:] if len(rows) > 1 else rows), flush=True)
                for line in seen.failed[:3]:
                    print(line)
            memory = soaked(address, asked, process, args.soak) if args.soak else []
    print(table(rows))
    if args.json:
        record = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit(),
            "processors": os.cpu_count(),
            "options": {name: value for name, value in vars(args).items() if name != "json"},
            "rows": rows,
            "soak": memory,
        }
        replace_json(args.json, record)


def soaked(address: str, asked: Any, process: Any, count: int) -> list[dict[str, float]]:
    """Resident memory after every tenth of so many requests."""
    found = []
    for tenth in range(10):
        seen = crowd(address, asked, 8, each=count // 80, cancel=11)
        found.append({"requests": (tenth + 1) * (count // 80) * 8, "rss_mb": rss_mb(process), "wrong": seen.wrong})
        print(found[-1], len(seen.failed), flush=True)
    return found


if __name__ == "__main__":
    main()
