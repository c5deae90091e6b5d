"""Text in pictures: in its column, and nothing lost unsaid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.analysis.kept.lettering import font, plain, wrap


@given(st.text(max_size=120), st.integers(40, 300), st.integers(1, 5))
def test_lines_fit_and_hold_the_text(text: str, width: int, most: int) -> None:
    lines = wrap(text, 14, width, most)
    assert 1 <= len(lines) <= most
    assert all(font(14).getlength(line) <= width and line.isascii() for line in lines)
    whole, shown = "".join(plain(text).split()), "".join("".join(lines).split())
    if shown != whole:
        assert shown.endswith("...") and whole.startswith(shown.removesuffix("..."))


def test_words_are_kept_together() -> None:
    assert wrap("a red car\nno", 14, 40, 9) == ["a red", "car", "no"]


@pytest.mark.parametrize(
    ("text", "shown"), [("é漢", r"\xe9\u6f22"), ("b\udcff", r"b\udcff"), ("a\tb\x00\x1b", r"a b\x00\x1b"), ("x\r\ny", "x\ny")]
)
def test_what_the_font_lacks_is_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_what_is_left_out_is_told() -> None:
    assert wrap("word " * 50, 14, 100, 2)[-1].endswith("...")
