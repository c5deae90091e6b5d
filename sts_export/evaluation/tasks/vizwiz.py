"""VizWiz-VQA (Gurari et al. 2018), validation split: val.json, and pictures that blind people took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sts_export.evaluation.formats.folder import digest_of, find, picture_folder
from sts_export.evaluation.formats.reading import json_list, wrong
from sts_export.evaluation.metrics.consensus import vqa_accuracy
from sts_export.evaluation.questions import PercentRight, Question
from sts_export.evaluation.wording import ONE_WORD, UNANSWERABLE


class VizWiz(PercentRight):
    name = "vizwiz"
    summary = "VizWiz-VQA, validation split"
    layout = "val.json (or Annotations/val.json), val/"
    max_new_tokens = 16

    def digest(self, data: Path) -> str:
        return digest_of([_file(data)])

    def questions(self, data: Path) -> Iterator[Question]:
        pictures = picture_folder(data, ("val", "images"))
        for entry in json_list(_file(data)):
            truth = tuple(one.get("answer", str) for one in entry.entries("answers"))
            if not truth:
                raise wrong(entry.place, "'answers' is empty")
            picture = entry.get("image", str)
            prompt = f"{entry.get('question', str)}\n{UNANSWERABLE}\n{ONE_WORD}"
            yield Question(picture, prompt, (pictures / picture,), truth, entry.get("answer_type", str, "all"))

    def score(self, question: Question, answer: str) -> float:
        return vqa_accuracy(answer, question.truth)


def _file(data: Path) -> Path:
    return find(data, ["val.json", "Annotations/val.json"], "annotations")


TASK = VizWiz()
