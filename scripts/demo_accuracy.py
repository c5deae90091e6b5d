"""Accuracy of the demo model, exported, on held-out scenes at several budgets: `python scripts/demo_accuracy.py`.

Every budget is exported to a temporary bundle and asked the same questions through the runtime, greedily; an answer counts
if it equals the true one.

Prints a Markdown row a budget: accuracy per question type and in total, with its Wilson 95 %
confidence interval.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

from sts_export.demo.questions import KINDS
from sts_export.demo.world import held_out
from sts_export.exporter import ExportRequest, export
from sts_export.runtime.pipeline import Pipeline

BUDGETS = ("100%", "128", "64", "32")


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927)."""
    share, square = right / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return centre - half, centre + half


def measure(budget: str, scenes: range, threads: int | None) -> dict[str, tuple[int, int]]:
    """Question type -> (right, asked), with ``all`` for the sum."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        export(ExportRequest("demo", output=Path(folder) / "bundle", budget=budget, weights="link"))
        pipeline = Pipeline(Path(folder) / "bundle", threads=threads)
        for index in scenes:
            image, questions = held_out(index)
            for question in questions:
                answer = pipeline.generate(question.text, images=image, max_new_tokens=16).text.strip()
                for kind in (question.kind, "all"):
                    asked[kind] += 1
                    right[kind] += answer == question.answer
    return {kind: (right[kind], asked[kind]) for kind in asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes (default: 200)")
    parser.add_argument("--first", type=int, default=1000, help="first of them; those below 300 were looked at during training")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    args = parser.parse_args()
    table = {}
    scenes = range(args.first, args.first + args.scenes)
    print(f"| budget | {' | '.join(KINDS)} | all | 95 % interval | questions |")
    print("|" + " --- |" * (len(KINDS) + 4))
    for budget in args.budgets:
        table[budget] = measure(budget, scenes, args.threads)
        shares = [f"{right / asked:.1%}" for right, asked in (table[budget][kind] for kind in (*KINDS, "all"))]
        low, high = wilson(*table[budget]["all"])
        print(f"| {budget} | {' | '.join(shares)} | {low:.1%} to {high:.1%} | {table[budget]['all'][1]} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
