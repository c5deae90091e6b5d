"""POPE: its files, and its figures worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.helpers import headline, pope, scored, task

POPE = task("pope")


def test_questions(tmp_path: Path) -> None:
    questions = list(POPE.questions(pope(tmp_path)))
    assert [one.id for one in questions] == [
        f"{split}-{number}" for split in ("random", "popular", "adversarial") for number in (1, 2)
    ]
    assert questions[0].prompt == "Is there a cat in the image?\nAnswer the question using a single word or phrase."
    assert questions[0].images == (tmp_path / "val2014" / "a.jpg",)
    assert (questions[0].truth, questions[1].truth, questions[0].kind) == (("yes",), ("no",), "random")


def test_figures(tmp_path: Path) -> None:
    """Random: both right.  Popular: yes to both.  Adversarial: no to both."""
    said = {"random": ("Yes", "No"), "popular": ("Yes", "Yes"), "adversarial": ("No", "No")}
    answers = {f"{split}-{number}": said[split][number - 1] for split in said for number in (1, 2)}
    results = scored(POPE, pope(tmp_path), answers)
    metrics = POPE.metrics(results)
    assert metrics["random"] == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5}
    assert metrics["popular"] == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_ratio": 1})
    assert metrics["adversarial"] == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    average = {"accuracy": 2 / 3, "precision": 0.5, "recall": 2 / 3, "f1": 5 / 9, "yes_ratio": 0.5}
    assert metrics["average"] == pytest.approx(average)
    assert headline(POPE, results) == pytest.approx(100 * 5 / 9)


def test_files_may_end_in_jsonl_and_lie_in_coco(tmp_path: Path) -> None:
    pope(tmp_path)
    (tmp_path / "coco").mkdir()
    for file in tmp_path.glob("*.json"):
        file.rename(tmp_path / "coco" / f"{file.stem}.jsonl")
    assert len(list(POPE.questions(tmp_path))) == 6
