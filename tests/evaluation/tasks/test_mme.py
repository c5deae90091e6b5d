"""MME: its folders, and its points worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.errors import RequestError
from tests.evaluation.helpers import headline, picture, scored, task

MME = task("mme")


def mme(folder: Path) -> Path:
    """Two pictures of existence, one of celebrity in the other layout, one of code reasoning."""
    for name, colour in (("1", "red"), ("2", "blue")):
        picture(folder / "existence" / f"{name}.jpg", colour)
        asked = "Is there a {} in this image? Please answer yes or no.\t{}\n"
        (folder / "existence" / f"{name}.txt").write_text(asked.format("cat", "Yes") + asked.format("dog", "No"))
    picture(folder / "celebrity" / "images" / "x.png")
    (folder / "celebrity" / "questions_answers_YN").mkdir()
    (folder / "celebrity" / "questions_answers_YN" / "x.txt").write_text(
        "Is she A? Please answer yes or no.\tYes\nIs she B?\tNo\n"
    )
    picture(folder / "code_reasoning" / "1.png")
    (folder / "code_reasoning" / "1.txt").write_text("Is it 1?\tYes\nIs it 2?\tNo")
    return folder


def test_questions(tmp_path: Path) -> None:
    questions = list(MME.questions(mme(tmp_path)))
    assert [one.kind for one in questions] == ["existence"] * 4 + ["celebrity"] * 2 + ["code_reasoning"] * 2
    assert questions[0].prompt == "Is there a cat in this image?\nAnswer the question using a single word or phrase."
    assert questions[4].images == (tmp_path / "celebrity" / "images" / "x.png",)
    assert (questions[4].truth, questions[5].truth) == (("yes",), ("no",))


def test_points(tmp_path: Path) -> None:
    """Existence: 3 of 4 right, 1 of 2 pictures.  Celebrity: 1 of 2, 0 of 1.  Code: all."""
    answers = {
        "existence/1-0": "Yes",
        "existence/1-1": "No",
        "existence/2-0": "Yes",
        "existence/2-1": "Yes",
        "celebrity/x-0": "maybe",
        "celebrity/x-1": "no",
        "code_reasoning/1-0": "Yes.",
        "code_reasoning/1-1": "no",
    }
    results = scored(MME, mme(tmp_path), answers)
    metrics = MME.metrics(results)
    assert metrics["subtasks"] == {"existence": 75 + 50, "celebrity": 50, "code_reasoning": 200}
    assert (metrics["perception"], metrics["cognition"]) == (175, 200)
    assert headline(MME, results) == 175


def test_a_picture_that_is_half_asked_counts_in_accuracy_only(tmp_path: Path) -> None:
    answers = {"existence/1-0": "yes", "existence/1-1": "no", "existence/2-0": "no"}
    results = scored(MME, mme(tmp_path), lambda name: answers.get(name, "yes"))[:3]
    metrics = MME.metrics(results)
    assert metrics["subtasks"] == pytest.approx({"existence": 100 * 2 / 3 + 100})
    assert (metrics["perception"], metrics["cognition"]) == (metrics["subtasks"]["existence"], None)


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    (mme(tmp_path) / "existence" / "2.txt").write_text("Is there a cat?\tYes\nIs there a dog? No\n")
    with pytest.raises(RequestError, match=r"existence/2\.txt, line 2: not a question, a tab, and Yes or No"):
        list(MME.questions(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no folder of a subtask: put existence or"):
        list(MME.questions(tmp_path))
