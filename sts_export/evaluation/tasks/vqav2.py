"""VQA-v2 (Goyal et al. 2017), validation split: questions and annotations as published, pictures of COCO val2014."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sts_export.evaluation.formats.folder import digest_of, find, picture_folder
from sts_export.evaluation.formats.reading import json_list, wrong
from sts_export.evaluation.metrics.consensus import vqa_accuracy
from sts_export.evaluation.questions import PercentRight, Question
from sts_export.evaluation.wording import ONE_WORD

_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


class VqaV2(PercentRight):
    name = "vqav2"
    summary = "VQA-v2, validation split"
    layout = f"{_QUESTIONS}, {_ANNOTATIONS}, val2014/"
    max_new_tokens = 16

    def digest(self, data: Path) -> str:
        return digest_of(_files(data))

    def questions(self, data: Path) -> Iterator[Question]:
        asked, annotated = _files(data)
        pictures = picture_folder(data, ("val2014", "images"))
        answers = {entry.text("question_id"): entry for entry in json_list(annotated, "annotations")}
        for entry in json_list(asked, "questions"):
            name = entry.text("question_id")
            if name not in answers:
                raise wrong(entry.place, f"{annotated.name} has no answers to question {name}")
            truth = tuple(one.get("answer", str) for one in answers[name].entries("answers"))
            if not truth:
                raise wrong(answers[name].place, "'answers' is empty")
            picture = pictures / f"COCO_val2014_{entry.get('image_id', int):012d}.jpg"
            kind = answers[name].get("answer_type", str)
            yield Question(name, f"{entry.get('question', str)}\n{ONE_WORD}", (picture,), truth, kind)

    def score(self, question: Question, answer: str) -> float:
        return vqa_accuracy(answer, question.truth)


def _files(data: Path) -> tuple[Path, Path]:
    return find(data, [_QUESTIONS], "questions"), find(data, [_ANNOTATIONS], "annotations")


TASK = VqaV2()
