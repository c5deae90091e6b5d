"""GQA (Hudson & Manning 2019), balanced test-dev split: testdev_balanced_questions.json and the pictures of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sts_export.evaluation.formats.folder import digest_of, find, picture_folder
from sts_export.evaluation.formats.reading import Entry, json_objects
from sts_export.evaluation.questions import PercentRight, Question
from sts_export.evaluation.wording import ONE_WORD


class Gqa(PercentRight):
    """Right is an answer that is the true one, as LLaVA submits it: in lower case and without a full stop at its end."""

    name = "gqa"
    summary = "GQA, balanced test-dev split"
    layout = "testdev_balanced_questions.json (or questions1.2/testdev_balanced_questions.json), images/"
    max_new_tokens = 16

    def digest(self, data: Path) -> str:
        return digest_of([_file(data)])

    def questions(self, data: Path) -> Iterator[Question]:
        pictures = picture_folder(data, ("images", "allImages/images"))
        for name, entry in json_objects(_file(data)):
            prompt = f"{entry.get('question', str)}\n{ONE_WORD}"
            picture = pictures / f"{entry.text('imageId')}.jpg"
            yield Question(name, prompt, (picture,), (entry.get("answer", str),), _structure(entry))

    def score(self, question: Question, answer: str) -> float:
        return float(answer.strip().rstrip(".").lower() == question.truth[0])


def _structure(entry: Entry) -> str:
    """How the question is built, such as ``verify`` or ``choose``; ``all`` where the file does not say."""
    types = entry.get("types", dict, {})
    structure = types.get("structural")
    return structure if isinstance(structure, str) else "all"


def _file(data: Path) -> Path:
    return find(data, ["testdev_balanced_questions.json", "questions1.2/testdev_balanced_questions.json"], "questions")


TASK = Gqa()
