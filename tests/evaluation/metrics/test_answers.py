"""Normalization of answers, worked by hand from the published scorers' code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.evaluation.metrics.answers import evalai, official

CASES = {
    "The Cat": "cat",
    "an apple a day": "apple day",
    "two": "2",
    "None": "0",
    "ten dogs": "10 dogs",
    "eleven": "eleven",
    "dont": "don't",
    "couldnt've": "couldn't've",
    "couldntve": "couldntve",  # two apostrophes are missing: the table has no such form
    "somebody'd": "somebodyd",  # the table has it the wrong way round
    "black/white": "black white",
    "black / white": "black  white".replace("  ", " "),
    "t-shirt": "t shirt",
    "yes, sir": "yes sir",
    "yes,sir": "yes sir",
    "1,000": "1000",  # a number with a comma: every mark goes without a trace
    "1,000-2": "10002",
    "3.50": "3.50",
    "U.S.": "us",
    "no.": "no",
    "what ?": "what",
    "line\nbreak\t": "line break",
    "it's": "it's",
    "": "",
    "the": "",
}


@pytest.mark.parametrize("said", CASES)
def test_the_official_form(said: str) -> None:
    assert official(said) == CASES[said]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("1,000", "1000"),  # the comma goes before the marks are looked at
        ("1,000-2", "1000 2"),
        ("yes,sir", "yessir"),
        ("What?", "what"),
        ("dog's", "dog 's"),
        ("The dog's bowl", "dog 's bowl"),
        ("it's", "it 's"),
        ("Two", "2"),
    ],
)
def test_the_form_of_evalai(said: str, expected: str) -> None:
    assert evalai(said) == expected


@given(st.text(alphabet="abThe 123.,-'/\n", max_size=30))
def test_the_official_form_is_lower_case_words_with_one_space(said: str) -> None:
    found = official(said)
    assert found == " ".join(found.lower().split())
    assert not {"a", "an", "the"} & set(found.split())
