"""The letter of a choice, read out of an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sts_export.evaluation.wording import LETTERS

_STATED = (re.compile(r"The answer is ([A-E])\."), re.compile(r"The answer is ([A-E])"))
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def scienceqa_letter(answer: str, choices: int) -> str | None:
    """A letter alone, at the beginning before ". ", or after "The answer is " (LLaVA's ``eval_science_qa.py``)."""
    text = answer.strip().replace("\n", ". ")
    if text in ("A", "B", "C", "D", "E"):
        found = text
    elif len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        found = text[0]
    else:
        found = next((stated.group(1) for form in _STATED if (stated := form.search(text))), "")
    return found if found and found in LETTERS[:choices] else None


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The one letter that is a word of the answer, or else the one option whose text is in it.

    The rules of MMBench's own evaluation (``can_infer`` of VLMEvalKit), which asks a language model where they find nothing;
    here that is no answer.

    Args:
        options: letter -> text.
    """
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and not (letters == ["A"] and len(words) > 3):  # a sentence may begin with the article
        return letters[0]
    said = answer.lower()
    named = [letter for letter, text in options.items() if text.lower() in said]
    return named[0] if len(named) == 1 else None
