"""GQA's file, and the built-in world."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from sts_export.demo.held_out import held_out
from tests.evaluation.helpers import headline, scored, task, write_json

GQA, DEMO = task("gqa"), task("demo")


def gqa(folder: Path) -> Path:
    questions = {
        "201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "types": {"structural": "verify"}},
        "201640614": {"imageId": "n235859", "question": "Who is wearing it?", "answer": "women"},
    }
    write_json(folder / "testdev_balanced_questions.json", questions)
    (folder / "images").mkdir()
    return folder


def test_gqa(tmp_path: Path) -> None:
    results = scored(GQA, gqa(tmp_path), {"201307251": "No.", "201640614": "the women"})
    first, second = (one.question for one in results)
    assert first.prompt == "Is it overcast?\nAnswer the question using a single word or phrase."
    assert first.images == (tmp_path / "images" / "n161313.jpg",)
    assert (first.kind, second.kind) == ("verify", "all")
    assert [one.score for one in results] == [1.0, 0.0]
    assert headline(GQA, results) == 50


def test_the_demo_world_is_the_same_each_time() -> None:
    first, again = (list(islice(DEMO.questions(Path()), 20)) for _ in range(2))
    assert [(one.id, one.prompt, one.truth) for one in first] == [(one.id, one.prompt, one.truth) for one in again]
    assert len({one.id for one in first}) == 20
    assert DEMO.digest(Path()) == DEMO.digest(Path())


def test_pictures_of_the_demo_world_are_drawn_when_wanted() -> None:
    question = next(DEMO.questions(Path()))
    (draw,) = question.images
    assert callable(draw)
    assert isinstance(draw(), Image.Image)


@pytest.mark.parametrize(("before", "after", "score"), [("", "", 1.0), (" ", "\n", 1.0), ("", ".", 0.0)])
def test_an_answer_is_right_if_it_equals_the_true_one_stripped(before: str, after: str, score: float) -> None:
    question = next(DEMO.questions(Path()))
    assert DEMO.score(question, f"{before}{question.truth[0]}{after}") == score


def test_a_question_about_two_pictures_has_both() -> None:
    question = next(one for one in DEMO.questions(Path()) if one.kind == "two pictures")
    index = int(question.id.partition("-")[0])
    drawn = [draw() for draw in question.images if callable(draw)]
    pixels = [picture.tobytes() for picture in drawn if isinstance(picture, Image.Image)]
    assert pixels == [picture.tobytes() for picture in held_out(index)[0]]
