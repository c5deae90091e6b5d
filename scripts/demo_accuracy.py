"""Accuracy of the demo model, exported, on held-out scenes at several budgets: `python scripts/demo_accuracy.py`.

Every budget is exported to a temporary bundle and asked the same questions through the runtime, greedily; an answer counts
if it equals the true one.  Prints one row a budget with Wilson 95 % confidence intervals, per question type and in total.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

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


def measure(budget: str, scenes: int, threads: int | None) -> dict[str, tuple[int, int]]:
    """Question type -> (right, asked), with ``all`` for the sum."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        export(ExportRequest("demo", output=Path(folder) / "bundle", budget=budget, weights="link"))
        pipeline = Pipeline(Path(folder) / "bundle", threads=threads)
        for index in range(scenes):
            image, questions = held_out(index)
            for question in questions:
                answer = pipeline.generate(question.text, images=image, max_new_tokens=16).text.strip()
                for kind in (question.kind, "all"):
                    asked[kind] += 1
                    right[kind] += answer == question.answer
    return {kind: (right[kind], asked[kind]) for kind in asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200, help="held-out scenes (default: 200)")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    args = parser.parse_args()
    table = {}
    for budget in args.budgets:
        table[budget] = measure(budget, args.scenes, args.threads)
        cells = []
        for kind, (right, asked) in sorted(table[budget].items()):
            low, high = wilson(right, asked)
            cells.append(f"{kind} {right / asked:6.1%} [{low:.1%}, {high:.1%}] of {asked}")
        print(f"budget {budget}: " + "; ".join(cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
