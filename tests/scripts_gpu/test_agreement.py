"""Leading equal tokens, and what is said of the first that differs."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.gpu.end_to_end.agreement import agreement
from sts_export.measuring.turns import Outcome

THEIRS = Outcome(
    "transformers",
    {"tokens": [5, 6, 7, 8], "second_tokens": [1, 2, 9, 3], "margins": [0.5, 0.4, 0.001, 0.3], "finite": True},
)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([5, 6, 7, 8], {"equal": 4}),
        ([5, 6, 9, 1], {"equal": 2, "margin": 0.001, "second_choice": True, "near_tie": True}),
        ([5, 6, 1, 8], {"equal": 2, "margin": 0.001, "second_choice": False, "near_tie": False}),
        ([5, 2, 7, 8], {"equal": 1, "margin": 0.4, "second_choice": True, "near_tie": False}),
        ([0, 6, 7, 8], {"equal": 0, "margin": 0.5, "second_choice": False, "near_tie": False}),
    ],
)
def test_first_difference(tokens: list[int], expected: dict[str, Any]) -> None:
    assert agreement(Outcome("100%", {"tokens": tokens}), THEIRS) == {"of": 4, "finite": True, **expected}


def test_nothing_to_compare() -> None:
    assert agreement(None, THEIRS) is None
    assert agreement(THEIRS, None) is None
