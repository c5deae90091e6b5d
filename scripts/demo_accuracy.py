"""Accuracy of the demo model, exported, on held-out scenes at several budgets: `python -m scripts.demo_accuracy`.

Every budget is exported to a temporary bundle and asked the same questions through the runtime, greedily; an answer counts
if it equals the true one.  With --quantize every budget is exported twice, in float32 and quantized, and asked the same.

Prints a Markdown row a bundle: accuracy per question type and in total, with its Wilson 95 %
confidence interval; with --quantize, also how many answers quantization changed, and how many of those from right to wrong
and from wrong to right.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from scripts.gpu.carry.tree import head
from sts_export.demo.held_out import held_out
from sts_export.demo.questions import KINDS
from sts_export.dtypes import QUANTIZATIONS
from sts_export.evaluation.results.statistics import wilson
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import replace_json
from sts_export.generation.pipeline import Pipeline
from sts_export.pruning.config import Positions

BUDGETS = ("100%", "128", "64", "32")


@dataclass(frozen=True)
class Answer:
    """What the model said to a question of this type, and what is true."""

    kind: str
    said: str
    true: str

    @property
    def right(self) -> bool:
        return self.said == self.true


@dataclass(frozen=True)
class Changes:
    """Answers that differ between two bundles; some were wrong before and are wrong in another way."""

    changed: int
    right_to_wrong: int
    wrong_to_right: int

    @classmethod
    def between(cls, before: list[Answer], after: list[Answer]) -> Changes:
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if old.said != new.said]
        return cls(
            len(pairs),
            sum(old.right and not new.right for old, new in pairs),
            sum(new.right and not old.right for old, new in pairs),
        )


def ask(budget: str, scenes: Iterable[int], threads: int | None, positions: str, quantize: str | None = None) -> list[Answer]:
    """All questions about these scenes, in order."""
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        stored: Literal["copy", "link"] = "copy" if quantize else "link"
        choices = {"positions": positions}
        export(ExportRequest("demo", Path(folder) / "bundle", budget, choices=choices, quantize=quantize, weights=stored))
        pipeline = Pipeline(Path(folder) / "bundle", threads=threads)
        for index in scenes:
            image, questions = held_out(index)
            for question in questions:
                said = pipeline.generate(question.text, images=image, max_new_tokens=16).text.strip()
                answers.append(Answer(question.kind, said, question.answer))
    return answers


def count(answers: list[Answer]) -> dict[str, tuple[int, int]]:
    """Question type -> (right, asked), with ``all`` for the sum."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for answer in answers:
        for kind in (answer.kind, "all"):
            asked[kind] += 1
            right[kind] += answer.right
    return {kind: (right[kind], asked[kind]) for kind in asked}


def print_row(label: str, counts: dict[str, tuple[int, int]]) -> None:
    shares = [f"{right / asked:.1%}" for right, asked in (counts[kind] for kind in (*KINDS, "all"))]
    low, high = wilson(*counts["all"])
    print(f"| {label} | {' | '.join(shares)} | {low:.1%} to {high:.1%} | {counts['all'][1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes (default: 200)")
    parser.add_argument("--first", type=int, default=1000, help="first of them; those below 300 were looked at during training")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--positions", choices=get_args(Positions), default="reindex")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="also export so, and report what changed")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    args = parser.parse_args()
    record: dict[str, object] = {}
    changes: dict[str, Changes] = {}
    scenes = range(args.first, args.first + args.scenes)
    print(f"| budget | {' | '.join(KINDS)} | all | 95 % interval | questions |")
    print("|" + " --- |" * (len(KINDS) + 4))
    for budget in args.budgets:
        plain = ask(budget, scenes, args.threads, args.positions)
        record[budget] = count(plain)
        print_row(budget, count(plain))
        if args.quantize:
            label, quantized = f"{budget} {args.quantize}", ask(budget, scenes, args.threads, args.positions, args.quantize)
            changes[budget] = Changes.between(plain, quantized)
            record[label] = {**count(quantized), "changes": asdict(changes[budget])}
            print_row(label, count(quantized))
    if args.quantize:
        print(f"\n| budget | answers changed by {args.quantize} | right -> wrong | wrong -> right |")
        print("| --- | --- | --- | --- |")
        for budget, found in changes.items():
            print(f"| {budget} | {found.changed} | {found.right_to_wrong} | {found.wrong_to_right} |")
    if args.json:
        replace_json(args.json, {"commit": head(), "answers": record})


if __name__ == "__main__":
    main()
