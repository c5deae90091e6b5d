"""Consensus accuracy, worked by hand."""

from __future__ import annotations

import pytest

from sts_export.evaluation.metrics.consensus import textvqa_accuracy, vqa_accuracy


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # nine annotators see one match among the others (1/3), its author none: 9/3/10
        (2, 0.6),  # eight see two (2/3), two see one (1/3): (16 + 2) / 3 / 10
        (3, 0.9),  # seven see three (1), three see two (2/3): (7 + 2) / 10
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_matches_among_the_others(matches: int, expected: float) -> None:
    annotators = ["cat"] * matches + [f"dog {number}" for number in range(10 - matches)]
    assert vqa_accuracy("cat", annotators) == pytest.approx(expected)
    assert textvqa_accuracy("cat", annotators) == pytest.approx(expected)


def test_annotators_are_normalized_where_they_differ() -> None:
    differing = ["The cat", "cats", *["two"] * 8]
    assert vqa_accuracy("A Cat.", differing) == pytest.approx(0.3)
    assert vqa_accuracy("2", differing) == 1.0


def test_annotators_who_agree_are_taken_as_they_are() -> None:
    """The official scorer then normalizes neither side; the answer has been through the EvalAI processor before."""
    assert vqa_accuracy("Yes", ["yes"] * 10) == 1.0
    assert vqa_accuracy("cat", ["the cat"] * 10) == 0.0
    assert textvqa_accuracy("cat", ["the cat"] * 10) == 1.0


def test_fewer_annotators() -> None:
    assert vqa_accuracy("cat", ["cat", "dog"]) == pytest.approx((0 + 1 / 3) / 2)
