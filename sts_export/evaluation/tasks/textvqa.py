"""TextVQA (Singh et al. 2019), validation split: TextVQA_0.5.1_val.json, pictures in train_images.

LLaVA-1.5 shows the model what an OCR system read, too, and so does this task where that file of the benchmark is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sts_export.evaluation.formats.folder import digest_of, find, picture_folder
from sts_export.evaluation.formats.reading import json_list, wrong
from sts_export.evaluation.metrics.consensus import textvqa_accuracy
from sts_export.evaluation.questions import PercentRight, Question
from sts_export.evaluation.wording import ONE_WORD

_FILE = "TextVQA_0.5.1_val.json"
_OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"


class TextVqa(PercentRight):
    name = "textvqa"
    summary = "TextVQA, validation split"
    layout = f"{_FILE}, train_images/, and for prompts as LLaVA's {_OCR}"
    max_new_tokens = 16

    def digest(self, data: Path) -> str:
        ocr = data / _OCR
        return digest_of([_file(data), *([ocr] if ocr.is_file() else [])])

    def questions(self, data: Path) -> Iterator[Question]:
        pictures = picture_folder(data, ("train_images", "train_val_images/train_images", "images"))
        read = _read_texts(data)
        for entry in json_list(_file(data), "data"):
            image, truth = entry.get("image_id", str), entry.texts("answers")
            if not truth:
                raise wrong(entry.place, "'answers' is empty")
            lines = [entry.get("question", str), ONE_WORD]
            if read is not None:
                lines.insert(1, f"Reference OCR token: {', '.join(read.get(image, ()))}")
            yield Question(entry.text("question_id"), "\n".join(lines), (pictures / f"{image}.jpg",), truth)

    def score(self, question: Question, answer: str) -> float:
        return textvqa_accuracy(answer, question.truth)


def _read_texts(data: Path) -> dict[str, tuple[str, ...]] | None:
    """Picture -> what the OCR system read in it."""
    if not (data / _OCR).is_file():
        return None
    return {entry.get("image_id", str): entry.texts("ocr_tokens") for entry in json_list(data / _OCR, "data")}


def _file(data: Path) -> Path:
    return find(data, [_FILE], "annotations")


TASK = TextVqa()
