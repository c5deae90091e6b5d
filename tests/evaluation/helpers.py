"""Benchmarks of a few questions, written as they are published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sts_export.evaluation.questions import Scored, Task
from sts_export.evaluation.tasks import find_task


def picture(file: Path, colour: str = "red") -> Path:
    """A picture of a few pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(file)
    return file


def write_json(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_lines(file: Path, lines: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def scored(task: Task, data: Path, answers: Mapping[str, str] | Callable[[str], str]) -> list[Scored]:
    """Every question with its answer by id."""
    say = answers if callable(answers) else answers.__getitem__
    return [Scored(one, say(one.id), task.score(one, say(one.id))) for one in task.questions(data)]


def headline(task: Task, results: Sequence[Scored]) -> float:
    return float(task.headline({name: rows.sum(axis=0) for name, rows in task.columns(results).items()}))


def pope(folder: Path) -> Path:
    """Two questions a split about one picture, as in the authors' repository."""
    picture(folder / "val2014" / "a.jpg")
    for split in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "yes"},
            {"question_id": 2, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"},
        ]
        write_lines(folder / f"coco_pope_{split}.json", lines)
    return folder


def annotated(answers: Sequence[str]) -> list[dict[str, Any]]:
    return [{"answer": one, "answer_confidence": "yes", "answer_id": number} for number, one in enumerate(answers, 1)]


def vqav2(folder: Path) -> Path:
    for number in (9, 458752):
        picture(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg")
    questions = [
        {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
        {"image_id": 9, "question": "How many?", "question_id": 9001},
    ]
    annotations = [
        {"question_id": 9001, "image_id": 9, "answer_type": "number", "answers": annotated(["2"] * 2 + ["three"] * 8)},
        {"question_id": 458752000, "image_id": 458752, "answer_type": "other", "answers": annotated(["net"] * 10)},
    ]
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions, "data_subtype": "val2014"})
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    return folder


def task(name: str) -> Task:
    return find_task(name)


def export_pair(folder: Path) -> Path:
    """``whole`` (budget 100%) and ``pruned`` (budget 12 of 36 tokens) of a random LLaVA."""
    from sts_export.exporting.exporter import ExportRequest, export  # most tests of evaluation need neither this nor PyTorch
    from sts_export.testing.checkpoints import RandomLlava, write_random_llava

    write_random_llava(folder / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    for name, budget in (("whole", "100%"), ("pruned", "12")):
        export(ExportRequest(str(folder / "checkpoint"), folder / name, budget=budget, max_prompt_tokens=150, max_new_tokens=4))
    return folder
