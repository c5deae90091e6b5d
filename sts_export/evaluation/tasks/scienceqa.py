"""ScienceQA (Lu et al. 2022), test split, questions with a picture (IMG): problems.json, pid_splits.json, images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sts_export.evaluation.formats.folder import digest_of, find, picture_folder
from sts_export.evaluation.formats.reading import Entry, json_objects, read_json, wrong
from sts_export.evaluation.metrics.letters import scienceqa_letter
from sts_export.evaluation.questions import PercentRight, Question
from sts_export.evaluation.wording import LETTERS, with_options

_SPLIT = "test"


class ScienceQa(PercentRight):
    name = "scienceqa"
    summary = "ScienceQA, test split, questions with a picture"
    layout = "problems.json, pid_splits.json, images/ with test/NUMBER/image.png"
    max_new_tokens = 16

    def digest(self, data: Path) -> str:
        return digest_of(_files(data))

    def questions(self, data: Path) -> Iterator[Question]:
        file, splits = _files(data)
        pictures = picture_folder(data, ("images",))
        problems = dict(json_objects(file))
        for number in _numbers(splits):
            if number not in problems:
                raise wrong(str(splits), f"{file.name} has no problem {number}")
            entry = problems[number]
            if entry.get("image", str, ""):
                yield _question(number, entry, pictures)

    def score(self, question: Question, answer: str) -> float:
        return float(scienceqa_letter(answer, len(question.options)) == question.truth[0])


def _question(number: str, entry: Entry, pictures: Path) -> Question:
    choices, answer = entry.texts("choices"), entry.get("answer", int)
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
        raise wrong(entry.place, f"answer {answer} of {len(choices)} choices")
    hint = entry.get("hint", str, "").strip()
    asked = entry.get("question", str)
    prompt = with_options(f"Context: {hint}\n{asked}" if hint else asked, choices)
    places = (pictures / _SPLIT / number, pictures / number)
    folder = next((place for place in places if place.is_dir()), places[0])
    picture = folder / entry.get("image", str)
    return Question(number, prompt, (picture,), (LETTERS[answer],), entry.get("subject", str, "all"), options=choices)


def _numbers(splits: Path) -> list[str]:
    content = read_json(splits)
    numbers = content.get(_SPLIT) if isinstance(content, dict) else None
    if not isinstance(numbers, list) or not all(isinstance(number, str) for number in numbers):
        raise wrong(str(splits), f"no list of problem numbers under {_SPLIT!r}")
    return numbers


def _files(data: Path) -> tuple[Path, Path]:
    return find(data, ["problems.json"], "problems"), find(data, ["pid_splits.json"], "splits")


TASK = ScienceQa()
