"""POPE (Li et al. 2023, arXiv 2305.10355): is this object in the picture?

Files are those of the authors' repository, output/coco: three files with a question a line, over pictures of COCO val2014.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.evaluation.formats.folder import digest_of, find, picture_folder
from sts_export.evaluation.formats.reading import json_lines, wrong
from sts_export.evaluation.metrics.yes_no import pope_says_no
from sts_export.evaluation.questions import Columns, Question, Scored
from sts_export.evaluation.wording import ONE_WORD

SPLITS = ("random", "popular", "adversarial")


class Pope:
    """The score is F1, the mean of the three splits, in percent."""

    name = "pope"
    summary = "POPE: is this object in the picture?"
    layout = "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json (or .jsonl; or in coco/), val2014/"
    max_new_tokens = 16
    score_name = "F1, mean of the splits"
    usual_limit: int | None = None

    def digest(self, data: Path) -> str:
        return digest_of(_file(data, split) for split in SPLITS)

    def questions(self, data: Path) -> Iterator[Question]:
        pictures = picture_folder(data, ("val2014", "images", "coco/val2014"))
        for split in SPLITS:
            for entry in json_lines(_file(data, split)):
                label = entry.get("label", str)
                if label not in ("yes", "no"):
                    raise wrong(entry.place, f'\'label\' is {label!r}, not "yes" or "no"')
                name = f"{split}-{entry.text('question_id')}"
                picture = pictures / entry.get("image", str)
                yield Question(name, f"{entry.get('text', str)}\n{ONE_WORD}", (picture,), (label,), split)

    def score(self, question: Question, answer: str) -> float:
        return float(pope_says_no(answer) == (question.truth[0] == "no"))

    def columns(self, scored: Sequence[Scored]) -> Columns:
        """Of each split: true positives, false positives, false negatives, true negatives."""
        rows: dict[str, list[list[bool]]] = {}
        for one in scored:
            said, true = not pope_says_no(one.answer), one.question.truth[0] == "yes"
            rows.setdefault(one.question.kind, []).append(
                [said and true, said and not true, true and not said, not (said or true)]
            )
        return {split: np.array(rows[split], np.float64) for split in SPLITS if split in rows}

    def headline(self, sums: Columns) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = 100 * np.mean([_figures(one)["f1"] for one in sums.values()], axis=0)
        return mean

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Of each split and on average, as fractions."""
        sums = {split: rows.sum(axis=0) for split, rows in self.columns(scored).items()}
        splits = {split: {name: float(value) for name, value in _figures(one).items()} for split, one in sums.items()}
        names = next(iter(splits.values()), {})
        return {**splits, "average": {name: float(np.mean([one[name] for one in splits.values()])) for name in names}}


def _figures(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Of [..., 4] counts; 0 where nothing can be divided by, where the published scorer would end."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    total = tp + fp + fn + tn
    return {
        "accuracy": _share(tp + tn, total),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(tp + fp, total),
    }


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def _file(data: Path, split: str) -> Path:
    names = [f"{folder}coco_pope_{split}{suffix}" for folder in ("", "coco/") for suffix in (".json", ".jsonl")]
    return find(data, names, f"{split} split")


TASK = Pope()
