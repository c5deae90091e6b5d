"""Bundles that are asked: rows, what is not asked again, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from sts_export import Pipeline
from sts_export.errors import BudgetError, ImageError, OutputError, PromptError, RequestError
from sts_export.evaluation import evaluate as module
from sts_export.evaluation.asked import read_task
from sts_export.evaluation.evaluate import Evaluation, Settings, evaluate, evaluate_bundles
from sts_export.evaluation.questions import PercentRight, Question
from sts_export.testing.checkpoints import random_image
from tests.evaluation.helpers import picture, pope, write_lines


class Short(PercentRight):
    """Two questions about each of three pictures; right is whatever holds an even number of letters."""

    name, summary, layout, max_new_tokens = "short", "short", "", 3
    long: str | None = None

    def digest(self, data: Path) -> str:
        return "1"

    def questions(self, data: Path) -> Iterator[Question]:
        for number in range(6):
            prompt = "table " * 300 if str(number) == self.long else f"What is {number}?"
            yield Question(str(number), prompt, (random_image(number // 2, (40, 40)),), ("x",), "odd" if number % 2 else "even")

    def score(self, question: Question, answer: str) -> float:
        return float(len(answer) % 2 == 0)


@pytest.fixture(scope="module")
def pruned(bundles: Path) -> Pipeline:
    return Pipeline(bundles / "pruned", threads=1)


def lines(folder: Path) -> dict[str, list[str]]:
    """Ids of the answers in each journal, in their order."""
    files = sorted((folder / "answers").glob("*.jsonl"))
    return {file.name: [json.loads(line)["id"] for line in file.read_text().splitlines()[1:]] for file in files}


def test_a_row_a_budget(pruned: Pipeline) -> None:
    rows = evaluate(pruned, Short(), budgets=[12, "6"], keeps=[(9, 3)])
    assert [(row.budget, row.keep, row.asked) for row in rows] == [("12", (18, 6), 6), ("6", (9, 3), 6), ("9,3", (9, 3), 6)]
    assert [row.average_visual_tokens for row in rows] == [12, 6, 6]
    # The same counts, asked for in two ways.
    assert rows[1].units == rows[2].units
    own = rows[0]
    assert own.right == sum(score for _, score in own.units.values())
    assert own.kinds["odd"]["asked"] == own.kinds["even"]["asked"] == 3
    assert own.first_token_ms > 0 and not own.unpruned and own.method == "sts"


def test_answers_are_those_of_the_pipeline(pruned: Pipeline, tmp_path: Path) -> None:
    """One by one, without batches, features or journal."""
    evaluate(pruned, Short(), settings=Settings(batch_size=4, output=tmp_path))
    (file,) = (tmp_path / "answers").glob("*.jsonl")
    said = {answer["id"]: answer["text"] for answer in map(json.loads, file.read_text().splitlines()[1:])}
    for question in Short().questions(Path()):
        (image,) = question.images
        assert isinstance(image, Image)
        assert said[question.id] == pruned.generate(question.prompt, image, max_new_tokens=3).text


def counted(pipeline: Pipeline) -> Counter[str]:
    """How often each graph has run since."""
    runs: Counter[str] = Counter()
    run = pipeline._backend.run

    def count(graph: str, *args: Any, **settings: Any) -> Any:
        runs[graph] += 1
        return run(graph, *args, **settings)

    pipeline._backend.run = count  # type: ignore[method-assign]
    return runs


def test_a_picture_is_encoded_once_and_chosen_from_once_a_budget(bundles: Path, pruned: Pipeline) -> None:
    with Pipeline(bundles / "pruned", threads=1, feature_cache=1 << 20) as pipeline:
        runs = counted(pipeline)
        rows = evaluate(pipeline, Short(), budgets=[12, 6], settings=Settings(batch_size=4))
    assert (runs["vision_encoder"], runs["selector"]) == (3, 6)
    assert [row.units for row in rows] == [row.units for row in evaluate(pruned, Short(), budgets=[12, 6])]


def test_nothing_is_asked_twice(bundles: Path, tmp_path: Path) -> None:
    settings = Settings(batch_size=2, output=tmp_path)
    with Pipeline(bundles / "pruned", threads=1) as pipeline:
        runs = counted(pipeline)
        first = evaluate(pipeline, Short(), limit=3, settings=settings)
        assert runs["llm_upper"] == 3
        told: list[tuple[int, int]] = []
        rows = evaluate(pipeline, Short(), settings=settings, progress=lambda done, total: told.append((done, total)))
        assert runs["llm_upper"] == 6 and told == [(1, 3), (2, 3), (3, 3)]
        assert evaluate(pipeline, Short(), settings=settings) == rows
        assert runs["llm_upper"] == 6
    assert first[0].units.items() <= rows[0].units.items()
    assert list(lines(tmp_path).values()) == [["0", "1", "2", "3", "4", "5"]]


def test_other_settings_have_other_answers(pruned: Pipeline, tmp_path: Path) -> None:
    for new_tokens in (1, 2):
        evaluate(pruned, Short(), limit=1, settings=Settings(max_new_tokens=new_tokens, output=tmp_path))
    assert list(lines(tmp_path).values()) == [["0"], ["0"]]


def test_a_question_that_does_not_fit_is_named_and_earlier_answers_are_kept(pruned: Pipeline, tmp_path: Path) -> None:
    task = Short()
    task.long = "3"
    with pytest.raises(PromptError, match="question 3 of short: the prompt is too long"):
        evaluate(pruned, task, settings=Settings(batch_size=3, output=tmp_path))
    assert list(lines(tmp_path).values()) == [["0", "1", "2"]]


def test_a_damaged_picture_is_named(bundles: Path, tmp_path: Path) -> None:
    data = pope(tmp_path)
    (data / "val2014" / "a.jpg").write_bytes(b"just text")
    request = Evaluation([str(bundles / "pruned")], "pope", str(data), threads=1)
    with pytest.raises(ImageError, match=r"question random-1 of pope: image .* is not an image that can be read"):
        evaluate_bundles(request)


def test_what_is_refused_leaves_no_folder(pruned: Pipeline, tmp_path: Path) -> None:
    task = Short()
    task.long = "0"
    with pytest.raises(PromptError, match="question 0"):
        evaluate(pruned, task, settings=Settings(output=tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    evaluate(pruned, Short(), limit=1, settings=Settings(output=tmp_path / "new"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["answers"]


def request(bundles: Path, data: Path, *names: str, **settings: Any) -> Evaluation:
    return Evaluation([str(bundles / name) for name in names], "pope", str(data), threads=1, **settings)


def test_bundles_get_the_budgets_that_they_reach(bundles: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    asked = request(bundles, pope(tmp_path), "whole", "pruned", budgets=["100%", "12", "6"], limit=2)
    rows = evaluate_bundles(asked, note=notes.append)
    assert [(Path(row.bundle).name, row.budget, row.unpruned) for row in rows] == [
        ("whole", "100%", True),
        ("pruned", "12", False),
        ("pruned", "6", False),
    ]
    (note,) = notes
    assert note.startswith(f"{bundles / 'pruned'}, budget 100% is left out: budget 100% is unreachable: ")


def test_an_unpruned_bundle_is_there_to_be_compared_with(bundles: Path, tmp_path: Path) -> None:
    rows = evaluate_bundles(request(bundles, pope(tmp_path), "whole", "pruned", budgets=["6"], limit=1))
    assert [row.budget for row in rows] == ["100%", "6"]


@pytest.mark.parametrize(
    ("names", "budgets", "message"),
    [
        (["pruned"], ["20"], "budget 20 is unreachable: with this bundle the average number"),
        (["whole", "pruned"], ["15", "6"], r"pruned: budget 15 is unreachable"),
        (["pruned"], ["6", "6"], "a budget is given twice for .*pruned: give each once"),
        (["whole", "pruned"], ["30"], r"pruned: budget 30 is unreachable"),
        (["pruned", "pruned"], ["6"], "pruned is given twice, or is a copy of another bundle: give it once"),
    ],
)
def test_budgets_are_refused_before_anything_runs(
    bundles: Path, tmp_path: Path, names: list[str], budgets: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Pipeline", None)
    with pytest.raises((BudgetError, RequestError), match=message):
        evaluate_bundles(request(bundles, pope(tmp_path), *names, budgets=budgets))


def test_one_evaluation_at_a_time_writes_to_a_folder(bundles: Path, tmp_path: Path) -> None:
    asked = request(bundles, pope(tmp_path / "data"), "pruned", limit=1, settings=Settings(output=tmp_path / "out"))
    with module._alone(tmp_path / "out"), pytest.raises(OutputError, match="another evaluation is writing to"):
        evaluate_bundles(asked)
    assert len(evaluate_bundles(asked)) == 1


def test_other_annotations_are_another_evaluation(bundles: Path, tmp_path: Path) -> None:
    data = pope(tmp_path / "data")
    asked = request(bundles, data, "pruned", limit=1, settings=Settings(output=tmp_path / "out"))
    evaluate_bundles(asked)
    picture(data / "val2014" / "b.jpg")
    write_lines(data / "coco_pope_random.json", [{"question_id": 1, "image": "b.jpg", "text": "Is it?", "label": "no"}])
    evaluate_bundles(asked)
    assert list(lines(tmp_path / "out").values()) == [["random-1"], ["random-1"]]


def test_questions_are_read_once_for_several_calls(pruned: Pipeline) -> None:
    asked = read_task("demo", limit=2)
    assert [one.id for one in asked.questions] == ["0-0", "0-1"]
    assert evaluate(pruned, asked)[0].asked == 2
