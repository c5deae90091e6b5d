"""Brightness, frames and colours of single tokens."""

from __future__ import annotations

import numpy as np
import pytest

from sts_export.analysis.kept.tokens import KEPT_FRAME, STAGE1_FRAME, draw_tokens, merge_colour, token_side
from tests.analysis.kept.made import GREY, token_map

SIDE = 20


def centres(picture: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """[rows * columns, 3]: the middle pixel of every token."""
    return picture[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].reshape(rows * columns, 3)


def test_each_fate_has_its_brightness_and_frame() -> None:
    view = token_map(kept1=(1, 2, 7), kept2=(2,))
    drawn = np.asarray(draw_tokens(view, SIDE))
    assert drawn.shape == (3 * SIDE, 4 * SIDE, 3)
    bright = centres(drawn, 4, 3)
    dark = {token: int(bright[token, 0]) for token in range(12)}
    assert dark[2] == GREY[0] and {dark[1], dark[7]} == {round(0.65 * GREY[0])}
    assert {dark[token] for token in range(12) if token not in (1, 2, 7)} == {round(0.3 * GREY[0])}
    corners = drawn[::SIDE, ::SIDE].reshape(12, 3)
    framed = {token: tuple(corners[token].tolist()) for token in range(12)}
    assert framed[2] == KEPT_FRAME and framed[1] == framed[7] == STAGE1_FRAME
    assert {framed[token] for token in range(12) if token not in (1, 2, 7)} == {(60, 60, 60)}


def test_merged_tokens_have_the_colour_of_their_target() -> None:
    view = token_map(kept1=(1, 6), kept2=(1, 6), merged={0: 1, 4: 1, 11: 6}, colour=(0, 0, 0))
    drawn = np.asarray(draw_tokens(view, SIDE))
    bright = centres(drawn, 4, 3).astype(int)
    for number, (target, sources) in enumerate({1: [0, 4], 6: [11]}.items()):
        colour = np.array(merge_colour(number))
        assert all(np.abs(bright[source] - 0.3 * colour).max() <= 1 for source in sources)
        row, column = divmod(target, 4)
        assert (drawn[row * SIDE + 2, column * SIDE + 2] == colour).all()  # inside the yellow frame
    assert not bright[3].any()
    assert merge_colour(0) != merge_colour(1)


@pytest.mark.parametrize(
    ("columns", "rows", "side"), [(24, 24, 20), (1, 1, 40), (100, 80, 6), (128, 128, 6), (1000, 3, 2), (3, 5000, 1)]
)
def test_small_grids_are_drawn_large_and_large_ones_are_bounded(columns: int, rows: int, side: int) -> None:
    assert token_side(columns, rows, 480) == side
    assert draw_tokens(token_map(columns, rows, (0,), (0,)), side).size == (columns * side, rows * side)
