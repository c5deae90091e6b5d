"""Annotations that are not what they should be: one line with the file, the place and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.errors import ImageError, RequestError
from sts_export.evaluation.asked import read_task
from sts_export.evaluation.tasks import find_task, tasks
from tests.evaluation.helpers import pope, vqav2, write_json


def pope_line(text: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = pope(folder) / "coco_pope_popular.json"
        file.write_bytes(file.read_bytes().splitlines(keepends=True)[0] + text + b"\n")

    return change


def questions_of(content: object) -> Callable[[Path], object]:
    return lambda folder: write_json(vqav2(folder) / "v2_OpenEnded_mscoco_val2014_questions.json", content)


QUESTIONS = r"v2_OpenEnded_mscoco_val2014_questions\.json"
CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no-json": ("pope", pope_line(b"{"), r"coco_pope_popular\.json, line 2: no JSON \(Expecting property name"),
    "no-object": ("pope", pope_line(b"3"), r"coco_pope_popular\.json, line 2: an object was expected, not 3"),
    "no-label": (
        "pope",
        pope_line(b'{"question_id": 3, "image": "a.jpg", "text": "?"}'),
        r"coco_pope_popular\.json, line 2: 'label' is missing",
    ),
    "other-label": (
        "pope",
        pope_line(b'{"question_id": 3, "image": "a.jpg", "text": "?", "label": "perhaps"}'),
        r"line 2: 'label' is 'perhaps', not \"yes\" or \"no\"",
    ),
    "other-type": (
        "pope",
        pope_line(b'{"question_id": 3, "image": 5, "text": "?", "label": "no"}'),
        r"line 2: 'image' is 5, not a string",
    ),
    "not-utf-8": ("pope", pope_line(b"\xff"), r"coco_pope_popular\.json: not UTF-8"),
    "twice": (
        "pope",
        pope_line(b'{"question_id": 1, "image": "a.jpg", "text": "?", "label": "no"}'),
        "has question popular-1 of pope twice",
    ),
    "file-missing": (
        "pope",
        lambda folder: (pope(folder) / "coco_pope_random.json").unlink(),
        r"has no random split: put coco_pope_random\.json or",
    ),
    "json-cut-off": (
        "vqav2",
        lambda folder: (vqav2(folder) / "v2_mscoco_val2014_annotations.json").write_text('{"annotations":\n[{"question_id"'),
        r"v2_mscoco_val2014_annotations\.json, line 2: no JSON",
    ),
    "no-list": ("vqav2", questions_of({"questions": {}}), rf"{QUESTIONS}: 'questions' is {{}}, not a list"),
    "list-of-strings": ("vqav2", questions_of({"questions": ["x"]}), rf"{QUESTIONS}, questions\[0\]: an object was expected"),
    "image-id": (
        "vqav2",
        questions_of({"questions": [{"question_id": 9001, "image_id": "9", "question": "?"}]}),
        rf"{QUESTIONS}, questions\[0\]: 'image_id' is \"9\", not a whole number",
    ),
    "empty": ("vqav2", questions_of({"questions": []}), "has no questions of task vqav2"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    name, change, message = CASES[case]
    change(tmp_path)
    with pytest.raises(RequestError, match=message) as error:
        read_task(name, tmp_path)
    assert "\n" not in str(error.value)


def test_entries_beyond_the_limit_do_not_matter(tmp_path: Path) -> None:
    pope_line(b"{")(tmp_path)
    assert len(read_task("pope", tmp_path, 2).questions) == 2


def test_a_missing_picture_is_named_before_anything_runs(tmp_path: Path) -> None:
    (pope(tmp_path) / "val2014" / "a.jpg").unlink()
    with pytest.raises(ImageError, match=r"picture .*val2014/a\.jpg of question random-1 is missing"):
        read_task("pope", tmp_path)


@pytest.mark.parametrize("name", sorted(set(tasks()) - {"demo"}))
def test_a_folder_is_needed(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=rf"task {name} needs the benchmark's files \(--data FOLDER\)"):
        read_task(name)
    with pytest.raises(RequestError, match="is not a folder"):
        read_task(name, tmp_path / "none")
    with pytest.raises(RequestError, match=r"put .* there, or give another folder"):
        read_task(name, tmp_path)


def test_the_demo_world_reads_no_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="task demo reads no files: leave --data out"):
        read_task("demo", tmp_path)


@pytest.mark.parametrize(("name", "hint"), [("popes", "did you mean pope"), ("x", "choose one of demo, gqa")])
def test_an_unknown_task(name: str, hint: str) -> None:
    with pytest.raises(RequestError, match=f"unknown task '{name}': {hint}"):
        find_task(name)


def test_a_limit_is_above_zero() -> None:
    with pytest.raises(RequestError, match="limit must be at least 1"):
        read_task("demo", limit=0)
