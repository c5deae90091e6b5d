"""The picture as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sts_export.analysis.kept.sheet import all_in_words, draw_sheet
from sts_export.analysis.kept.tokens import KEPT_FRAME, STAGE1_FRAME
from tests.analysis.kept.made import HOSTILE, panel, token_map


def pixels(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(axis=-1).sum())


def frames(count: int, side: int = 40) -> int:
    """Pixels of as many frames of tokens, 2 wide."""
    return count * (side**2 - (side - 4) ** 2)


LEGEND = frames(1, 20)  # a token of the legend


def test_columns_and_rows() -> None:
    two_views = panel(token_map(), token_map(2, 2, (0, 3), (3,)))
    one = draw_sheet([two_views], "What?")
    assert pixels(one, KEPT_FRAME) == frames(2) + LEGEND
    assert pixels(one, STAGE1_FRAME) == frames(3) + LEGEND
    both = draw_sheet([two_views, panel(token_map())], "What?")
    assert pixels(both, KEPT_FRAME) == frames(3) + LEGEND and both.width > one.width and both.height == one.height


def test_the_legend_has_what_there_is() -> None:
    plain, merged = (draw_sheet([panel(token_map(merged=merges))], "What?") for merges in (None, {0: 1}))
    assert merged.height > plain.height
    all_kept = draw_sheet([panel(token_map(2, 2, range(4), range(4)))], "What?")
    assert pixels(all_kept, STAGE1_FRAME) == 0 and pixels(all_kept, KEPT_FRAME) == frames(4) + LEGEND


def test_a_column_is_as_wide_as_its_text_needs() -> None:
    sheet = draw_sheet([panel(token_map(1, 1, (0,), (0,)), answer="word " * 40)], "What?")
    short = draw_sheet([panel(token_map(1, 1, (0,), (0,)))], "What?")
    assert sheet.width == short.width == 260 + 2 * 16
    assert sheet.height > short.height


TEXTS = {"empty": "", "hostile": HOSTILE, "surrogate": "\udcff", "long": "w" * 5000, "lines": "\n" * 50}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_is_drawn_in_bounds(text: str) -> None:
    sheet = draw_sheet([panel(token_map(name=text), title=text, answer=text)], text)
    assert sheet.width == 260 + 2 * 16 and sheet.height < 1200
    margin = np.asarray(sheet)[:, -16:]
    assert (margin == 255).all()


def test_many_columns_are_narrower() -> None:
    one, many = (draw_sheet([panel(token_map(24, 24))] * number, "What?") for number in (1, 6))
    assert one.width == 480 + 32
    assert many.width == 6 * 312 + 5 * 24 + 32


@pytest.mark.parametrize(("cls_tokens", "said"), [(0, "12 -> 3 -> 1 visual tokens"), (1, "12 -> 3 -> 1 visual tokens (1 CLS)")])
def test_counts_in_words(cls_tokens: int, said: str) -> None:
    assert all_in_words(panel(token_map(), cls_tokens=cls_tokens)) == said
