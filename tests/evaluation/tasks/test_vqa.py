"""VQA-v2, VizWiz and TextVQA: their files, and scores worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.helpers import annotated, headline, scored, task, vqav2, write_json

ONE_WORD = "Answer the question using a single word or phrase."


def test_vqav2(tmp_path: Path) -> None:
    """Questions follow the file of questions; annotations are found by number."""
    known = task("vqav2")
    results = scored(known, vqav2(tmp_path), {"458752000": " Net.", "9001": "two"})
    first, second = (one.question for one in results)
    assert first.prompt == f"What is this photo taken looking through?\n{ONE_WORD}"
    assert first.images == (tmp_path / "val2014" / "COCO_val2014_000000458752.jpg",)
    assert (first.kind, second.kind) == ("other", "number")
    assert [one.score for one in results] == pytest.approx([1.0, 0.6])
    assert headline(known, results) == pytest.approx(80)


def test_vizwiz(tmp_path: Path) -> None:
    answers = [{"answer": one, "answer_confidence": "yes"} for one in ["unanswerable"] * 9 + ["soda"]]
    entry = {"image": "VizWiz_val_00000000.jpg", "question": "What is this?", "answers": answers, "answer_type": "unanswerable"}
    write_json(tmp_path / "Annotations" / "val.json", [entry])
    known = task("vizwiz")
    (result,) = scored(known, tmp_path, lambda _: "Unanswerable")
    unsure = "When the provided information is insufficient, respond with 'Unanswerable'."
    assert result.question.prompt == f"What is this?\n{unsure}\n{ONE_WORD}"
    assert result.score == 1
    (result,) = scored(known, tmp_path, lambda _: "Soda")
    assert result.score == pytest.approx(0.3)


def textvqa(folder: Path) -> Path:
    entry = {
        "question_id": 34602,
        "image_id": "003a8ae2ef43b901",
        "question": "what brand?",
        "answers": ["nous les gosses"] * 7 + ["dakota"] * 3,
    }
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": [entry], "dataset_name": "textvqa"})
    return folder


def test_textvqa(tmp_path: Path) -> None:
    known = task("textvqa")
    (result,) = scored(known, textvqa(tmp_path), lambda _: "Dakota")
    assert result.question.prompt == f"what brand?\n{ONE_WORD}"
    assert result.question.images == (tmp_path / "003a8ae2ef43b901.jpg",)
    assert result.score == pytest.approx(0.9)


def test_textvqa_shows_what_was_read_where_the_file_is_there(tmp_path: Path) -> None:
    known, data = task("textvqa"), textvqa(tmp_path)
    before = known.digest(data)
    read = {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"]}
    write_json(data / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [read]})
    (question,) = known.questions(data)
    assert question.prompt == f"what brand?\nReference OCR token: DAKOTA, DIGITAL\n{ONE_WORD}"
    assert known.digest(data) != before


def test_annotations_that_lack_a_question_are_named(tmp_path: Path) -> None:
    from sts_export.errors import RequestError

    vqav2(tmp_path)
    write_json(
        tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1, "answers": annotated(["a"])}]}
    )
    with pytest.raises(
        RequestError, match=r"questions\.json, questions\[0\]: .*annotations\.json has no answers to question 458752000"
    ):
        list(task("vqav2").questions(tmp_path))
