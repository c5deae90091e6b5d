"""Where a picture's tokens stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class TokenGrid:
    """``columns x rows`` tokens of a picture, row by row from number ``first`` on.

    Args:
        box: left, top, right and bottom of the grid in fractions of the picture; outside 0 to 1 where it covers padding.
    """

    columns: int
    rows: int
    first: int
    box: Box = WHOLE


@dataclass(frozen=True)
class Places:
    """All grids of a picture of ``width x height`` pixels; each of its tokens is in one of them."""

    width: int
    height: int
    grids: Sequence[TokenGrid]


def middle_box(picture: tuple[int, int], cut: tuple[int, int]) -> Box:
    """What a cut out of a picture's middle covers; a larger one goes beyond its edges.

    Args:
        picture, cut: width and height, in the same unit.
    """
    (left, right), (top, bottom) = (_middle(*pair) for pair in zip(picture, cut, strict=True))
    return left, top, right, bottom


def _middle(whole: int, part: int) -> tuple[float, float]:
    start = (whole - part) // 2
    return start / whole, (start + part) / whole
