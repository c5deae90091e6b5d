"""Sizes that are chosen where none are asked for: they fit, and nothing is smaller than it has to be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.exporting.sizes import DEFAULT_NEW_TOKENS, DEFAULT_PROMPT_TOKENS, fit_picture, fit_text

limits = st.integers(1, 40_000)
asked = st.none() | st.integers(1, 3000)
visual = st.integers(1, 20_000)
always = settings(derandomize=True, deadline=None, database=None, max_examples=500)


def or_default(prompt: int | None, new: int | None) -> tuple[int, int]:
    return DEFAULT_PROMPT_TOKENS if prompt is None else prompt, DEFAULT_NEW_TOKENS if new is None else new


@always
@given(room=st.integers(-5000, 40_000), prompt=asked, new=asked)
def test_text_fits_its_room(room: int, prompt: int | None, new: int | None) -> None:
    text, answer = fit_text(room, prompt, new)
    assert prompt in (None, text) and new in (None, answer)
    assert (text, answer) <= or_default(prompt, new) and answer <= or_default(prompt, new)[1]
    if sum(or_default(prompt, new)) <= room:
        assert (text, answer) == or_default(prompt, new)
    elif None in (prompt, new):
        assert text + answer == room  # all of it is used
    if prompt is new is None:
        assert 0 <= text - answer <= 1  # shared alike


@always
@given(limit=limits, largest=visual, prompt=asked, new=asked)
def test_everything_fits(limit: int, largest: int, prompt: int | None, new: int | None) -> None:
    """A picture and the text that is left beside it; nothing is shrunk when everything fits."""
    picture = fit_picture(limit, largest, prompt, new)
    text, answer = fit_text(limit - picture, prompt, new)
    assert picture <= largest
    if largest + sum(or_default(prompt, new)) <= limit:
        assert (picture, text, answer) == (largest, *or_default(prompt, new))
    elif picture >= 1:
        assert text + answer + picture == limit
        # Pictures give way first, but not below half of what is left by the given numbers.
        left = limit - (prompt or 0) - (new or 0)
        if (text, answer) != or_default(prompt, new):
            assert picture == min(largest, left // 2)


@always
@given(limit=limits, more=st.integers(0, 3000), largest=visual, prompt=asked, new=asked)
def test_more_positions_never_make_anything_smaller(
    limit: int, more: int, largest: int, prompt: int | None, new: int | None
) -> None:
    pictures = [fit_picture(positions, largest, prompt, new) for positions in (limit, limit + more)]
    texts = [fit_text(room, prompt, new) for room in (limit, limit + more)]
    assert pictures[0] <= pictures[1]
    assert texts[0][0] <= texts[1][0] and texts[0][1] <= texts[1][1]


@pytest.mark.parametrize(
    ("limit", "largest", "prompt", "new", "expected"),
    [
        (128_000, 16384, None, None, (16384, 512, 512)),
        (4096, 16384, None, None, (3072, 512, 512)),
        (2048, 16384, None, None, (1024, 512, 512)),
        (1024, 16384, None, None, (512, 256, 256)),
        (1000, 16384, None, None, (500, 250, 250)),
        (1024, 100, None, None, (100, 462, 462)),
        (1024, 16384, None, 480, (272, 272, 480)),
        (1024, 16384, 100, 100, (824, 100, 100)),
        (4096, 16384, 3000, None, (584, 3000, 512)),
    ],
)
def test_examples(limit: int, largest: int, prompt: int | None, new: int | None, expected: tuple[int, int, int]) -> None:
    picture = fit_picture(limit, largest, prompt, new)
    assert (picture, *fit_text(limit - picture, prompt, new)) == expected
