"""MME (Fu et al. 2023, arXiv 2306.13394): a folder a subtask, two questions a picture, yes or no.

A subtask's score is 100 (acc + acc+): the share of right answers, and that of pictures with both answers right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import RequestError
from sts_export.evaluation.formats.folder import digest_of, find
from sts_export.evaluation.formats.reading import text_lines, wrong
from sts_export.evaluation.metrics.yes_no import mme_says
from sts_export.evaluation.questions import Columns, Question, Scored
from sts_export.evaluation.wording import ONE_WORD

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
# LLaVA-1.5 leaves it out, and asks for a single word instead.
_YES_OR_NO = "Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")


class Mme:
    """The score is perception's, of at most 2000; where only subtasks of cognition are there, cognition's."""

    name = "mme"
    summary = "MME: perception and cognition"
    layout = "a folder for each subtask (or all in MME_Benchmark_release_version/), each with pictures and text files"
    max_new_tokens = 16
    score_name = "perception"
    usual_limit: int | None = None

    def digest(self, data: Path) -> str:
        return digest_of(file for subtask, folder in _subtasks(data) for file in _text_files(folder))

    def questions(self, data: Path) -> Iterator[Question]:
        for subtask, folder in _subtasks(data):
            for file in _text_files(folder):
                picture = _picture(folder, file)
                for number, (line, place) in enumerate(text_lines(file)):
                    asked, _, answer = line.rstrip().rpartition("\t")
                    if not asked or answer.lower() not in ("yes", "no"):
                        raise wrong(place, "not a question, a tab, and Yes or No")
                    prompt = f"{asked.replace(_YES_OR_NO, '').strip()}\n{ONE_WORD}"
                    group = f"{subtask}/{file.stem}"
                    yield Question(f"{group}-{number}", prompt, (picture,), (answer.lower(),), subtask, group=group)

    def score(self, question: Question, answer: str) -> float:
        return float(mme_says(answer) == question.truth[0])

    def columns(self, scored: Sequence[Scored]) -> Columns:
        """Of each subtask, a row a picture: right answers, questions, whether both are right, whether both were asked."""
        pictures: dict[str, dict[str, list[float]]] = {}
        for one in scored:
            pictures.setdefault(one.question.kind, {}).setdefault(one.question.group, []).append(one.score)
        return {
            subtask: np.array([[sum(own), len(own), sum(own) == 2, len(own) == 2] for own in groups.values()], np.float64)
            for subtask, groups in pictures.items()
        }

    def headline(self, sums: Columns) -> NDArray[np.float64]:
        present = [name for name in PERCEPTION if name in sums] or list(sums)
        total: NDArray[np.float64] = np.sum([_points(sums[name]) for name in present], axis=0)
        return total

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Points of each subtask, and the sums of both halves; None where none of its subtasks is there."""
        points = {name: float(_points(rows.sum(axis=0))) for name, rows in self.columns(scored).items()}
        halves = {}
        for half, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
            own = [points[name] for name in names if name in points]
            halves[half] = sum(own) if own else None
        return {**halves, "subtasks": points}


def _points(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    right, asked, both_right, both_asked = np.moveaxis(sums, -1, 0)
    points: NDArray[np.float64] = 100 * (right / asked + both_right / np.maximum(both_asked, 1))
    return points


def _subtasks(data: Path) -> list[tuple[str, Path]]:
    """Those that are there, in the order of the paper."""
    names = [f"{top}{name}" for top in ("", "MME_Benchmark_release_version/") for name in (*PERCEPTION, *COGNITION)]
    top = find(data, names, "folder of a subtask").parent
    return [(name, top / name) for name in (*PERCEPTION, *COGNITION) if (top / name).is_dir()]


def _text_files(folder: Path) -> list[Path]:
    """One a picture, beside the pictures or in a folder of their own."""
    own = folder / "questions_answers_YN"
    files = sorted((own if own.is_dir() else folder).glob("*.txt"))
    if not files:
        raise RequestError(f"{folder} has no text files with questions; get the benchmark's files again")
    return files


def _picture(folder: Path, file: Path) -> Path:
    own = folder / "images"
    place = own if own.is_dir() else folder
    names = [place / f"{file.stem}{suffix}" for suffix in _SUFFIXES]
    return next((name for name in names if name.is_file()), names[0])


TASK = Mme()
