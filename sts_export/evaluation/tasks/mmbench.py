"""MMBench (Liu et al. 2023, arXiv 2307.06281): a table with pictures in base64, evaluated circularly.

Every question is asked once for each rotation of its options, and is right if all these answers are.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from sts_export.evaluation.formats.folder import digest_of, find
from sts_export.evaluation.formats.reading import Entry, table, wrong
from sts_export.evaluation.metrics.letters import mmbench_letter
from sts_export.evaluation.questions import PercentRight, Question, Scored
from sts_export.evaluation.wording import LETTERS, with_options

_ROTATED = 1_000_000  # rows from this index on are rotations that the file brings; ours come from the first ones
_NOTHING = ("", "nan", "none")  # in a cell; LLaVA's ``model_vqa_mmbench.py`` takes these for empty
_NAMES = ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv", "mmbench_dev_cn_20231003.tsv")


class MmBench(PercentRight):
    name = "mmbench"
    summary = "MMBench, dev split, circular evaluation"
    layout = "mmbench_dev_20230712.tsv, or another table of the benchmark as the only .tsv file"
    max_new_tokens = 16

    def digest(self, data: Path) -> str:
        return digest_of([_file(data)])

    def questions(self, data: Path) -> Iterator[Question]:
        pictures: dict[str, bytes] = {}
        for entry in table(_file(data)):
            index = _index(entry)
            picture = _picture(entry, pictures)
            pictures[str(index)] = picture
            if index < _ROTATED:
                yield from _rotations(index, entry, picture)

    def score(self, question: Question, answer: str) -> float:
        options = dict(zip(LETTERS, question.options, strict=False))
        return float(mmbench_letter(answer.strip(), options) == question.truth[0])

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """``vanilla``: accuracy with the options in their first order."""
        plain = [one.score for one in scored if one.question.id.endswith("-0")]
        return {"vanilla": sum(plain) / len(plain)}


def _rotations(index: int, entry: Entry, picture: bytes) -> Iterator[Question]:
    texts = [entry.get(letter, str, "") for letter in LETTERS[:4]]
    options = list(takewhile(lambda text: text.lower() not in _NOTHING, texts))
    answer = entry.get("answer", str)
    if len(options) < 2 or answer not in LETTERS[: len(options)] or len(answer) != 1:
        raise wrong(entry.place, f"answer {answer!r} of {len(options)} options")
    hint = entry.get("hint", str, "")
    lines = [*([hint] if hint.lower() not in _NOTHING else []), entry.get("question", str)]
    for turn in range(len(options)):
        turned = [*options[turn:], *options[:turn]]
        true = LETTERS[(LETTERS.index(answer) - turn) % len(options)]
        yield Question(
            f"{index}-{turn}",
            with_options("\n".join(lines), turned),
            (picture,),
            (true,),
            entry.get("category", str, "all"),
            unit=str(index),
            options=tuple(turned),
        )


def _index(entry: Entry) -> int:
    text = entry.get("index", str)
    if not text.isdecimal():
        raise wrong(entry.place, f"'index' is {text!r}, not a whole number")
    return int(text)


def _picture(entry: Entry, earlier: dict[str, bytes]) -> bytes:
    """Its bytes; a row may name the index of the row that has the picture."""
    text = entry.get("image", str)
    if text in earlier:
        return earlier[text]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise wrong(entry.place, "'image' is no base64") from None


def _file(data: Path) -> Path:
    others = sorted(file.name for file in data.glob("*.tsv")) if data.is_dir() else []
    return find(data, [*_NAMES, *(others if len(others) == 1 else [])], "table")


TASK = MmBench()
