"""MMBench and ScienceQA: letters, rotations, and what counts as one question."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from sts_export.errors import RequestError
from sts_export.evaluation.questions import first, units
from sts_export.media.images import load_image
from tests.evaluation.helpers import headline, picture, scored, task, write_json

LETTER = "Answer with the option's letter from the given choices directly."
MMBENCH, SCIENCEQA = task("mmbench"), task("scienceqa")
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")


def mmbench(folder: Path, *rows: tuple[str, ...]) -> Path:
    lines = ["\t".join(COLUMNS), *("\t".join(row) for row in rows)]
    (folder / "mmbench_dev_20230712.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def encoded(folder: Path) -> str:
    return base64.b64encode(picture(folder / "a.png").read_bytes()).decode()


def two_questions(folder: Path) -> Path:
    rows = [
        ("7", "Which animal?", "Look closely.", "cat", "dog", "fish", "", "B", "animals", encoded(folder)),
        ("8", "Which colour?", "nan", "red", "blue", "", "", "A", "colours", "7"),  # its picture is that of row 7
        ("1000007", "Which animal?", "", "dog", "fish", "cat", "", "A", "animals", "7"),  # a rotation that the file brings
    ]
    return mmbench(folder, *rows)


def test_mmbench_asks_every_rotation(tmp_path: Path) -> None:
    questions = list(MMBENCH.questions(two_questions(tmp_path)))
    assert [one.id for one in questions] == ["7-0", "7-1", "7-2", "8-0", "8-1"]
    assert questions[0].prompt == f"Look closely.\nWhich animal?\nA. cat\nB. dog\nC. fish\n{LETTER}"
    assert questions[1].prompt == f"Look closely.\nWhich animal?\nA. dog\nB. fish\nC. cat\n{LETTER}"
    assert questions[3].prompt == f"Which colour?\nA. red\nB. blue\n{LETTER}"
    assert [one.truth[0] for one in questions] == ["B", "A", "C", "A", "B"]
    (bytes_of_picture,) = questions[4].images
    assert isinstance(bytes_of_picture, bytes) and load_image(bytes_of_picture).size == (4, 3)


def test_mmbench_is_right_if_all_rotations_are(tmp_path: Path) -> None:
    """The second question is answered A whatever the order: right as it stands, wrong circularly."""
    answers = {"7-0": "B", "7-1": "dog", "7-2": "C", "8-0": "A", "8-1": "A"}
    results = scored(MMBENCH, two_questions(tmp_path), answers)
    assert units(results) == {"7": ("animals", 1.0), "8": ("colours", 0.0)}
    assert headline(MMBENCH, results) == 50
    assert MMBENCH.metrics(results) == {"vanilla": 1.0}


def test_a_limit_counts_units(tmp_path: Path) -> None:
    asked = first(MMBENCH.questions(two_questions(tmp_path)), 1)
    assert [one.id for one in asked] == ["7-0", "7-1", "7-2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("7", "Which?", "", "cat", "dog", "", "", "C", "x", "QUJD"), r"line 2: answer 'C' of 2 options"),
        (("7", "Which?", "", "cat", "dog", "", "", "A", "x", "no base64!"), r"line 2: 'image' is no base64"),
        (("x", "Which?", "", "cat", "dog", "", "", "A", "x", "QUJD"), r"line 2: 'index' is 'x', not a whole number"),
        (("7", "Which?", "", "cat"), r"line 2: 4 columns, but the first line names 10"),
        (("7", "", "", "cat", "dog", "", "", "A", "x", "QUJD"), r"line 2: 'question' is missing"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=rf"mmbench_dev_20230712\.tsv, {message}; correct the file or get it again"):
        list(MMBENCH.questions(mmbench(tmp_path, row)))


def scienceqa(folder: Path) -> Path:
    picture(folder / "images" / "test" / "4" / "image.png")
    problems = {
        "4": {
            "question": "Which?",
            "choices": ["x", "y"],
            "answer": 1,
            "hint": "",
            "image": "image.png",
            "subject": "social science",
        },
        "5": {
            "question": "Why?",
            "choices": ["x", "y"],
            "answer": 0,
            "hint": "A text.",
            "image": None,
            "subject": "language science",
        },
        "6": {
            "question": "How?",
            "choices": ["x", "y", "z"],
            "answer": 2,
            "hint": "A map.",
            "image": "image.png",
            "subject": "natural science",
        },
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": [], "test": ["6", "5", "4"]})
    return folder


def test_scienceqa_asks_what_has_a_picture(tmp_path: Path) -> None:
    results = scored(SCIENCEQA, scienceqa(tmp_path), {"6": "C. z", "4": "A"})
    first_one, second = (one.question for one in results)
    assert first_one.prompt == f"Context: A map.\nHow?\nA. x\nB. y\nC. z\n{LETTER}"
    assert second.prompt == f"Which?\nA. x\nB. y\n{LETTER}"
    assert second.images == (tmp_path / "images" / "test" / "4" / "image.png",)
    assert [one.score for one in results] == [1.0, 0.0]
    assert headline(SCIENCEQA, results) == 50


def test_an_answer_beyond_the_choices_is_named(tmp_path: Path) -> None:
    scienceqa(tmp_path)
    write_json(tmp_path / "problems.json", {"4": {"question": "?", "choices": ["x", "y"], "answer": 2, "image": "image.png"}})
    write_json(tmp_path / "pid_splits.json", {"test": ["4"]})
    with pytest.raises(RequestError, match=r"problems\.json, '4': answer 2 of 2 choices"):
        list(SCIENCEQA.questions(tmp_path))
