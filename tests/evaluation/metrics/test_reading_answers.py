"""Yes, no and letters, read out of answers as the published scorers do."""

from __future__ import annotations

import pytest

from sts_export.evaluation.metrics.letters import mmbench_letter, scienceqa_letter
from sts_export.evaluation.metrics.yes_no import mme_says, pope_says_no


@pytest.mark.parametrize(
    ("answer", "no"),
    [
        ("No", True),
        ("no", True),
        (" No\n", True),
        ("No, there is none.", True),
        ("There is not one.", True),
        ("Yes", False),
        ("yes. No doubt.", False),  # only the first sentence counts
        ("NO", False),  # the scorer knows three spellings
        ("none", False),
        ("", False),
    ],
)
def test_pope(answer: str, no: bool) -> None:
    assert pope_says_no(answer) is no


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", "yes"), ("NO", "no"), ("no, it", "no"), ("oh yes", "other"), ("a no", "no"), ("maybe", "other"), ("", "other")],
)
def test_mme(answer: str, expected: str) -> None:
    assert mme_says(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. a dog", "B"),
        ("B\na dog", "B"),
        ("The answer is C.", "C"),
        ("The answer is C", "C"),
        ("The answer is A or The answer is B.", "B"),
        ("D", None),  # there are three choices
        ("b", None),
        ("B) a dog", None),
        ("", None),
    ],
)
def test_scienceqa(answer: str, expected: str | None) -> None:
    assert scienceqa_letter(answer, 3) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("I think B", "B"),
        ("A", "A"),
        ("A cat is what I see", "A"),  # by its text, not by the article
        ("A bird is there now", None),
        ("A or B", None),
        ("a dog", "B"),
        ("the cat and the dog", None),
        ("D", None),
    ],
)
def test_mmbench(answer: str, expected: str | None) -> None:
    assert mmbench_letter(answer, {"A": "cat", "B": "dog", "C": "fish"}) == expected
