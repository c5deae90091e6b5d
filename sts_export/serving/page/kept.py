"""Which tokens of a request's pictures were kept, and where these stand, for the page to draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sts_export.media.places import TokenGrid
from sts_export.media.prepared import PreparedImage

_DIGITS = 5  # of a fraction: a tenth of a pixel of a large picture


def kept_pictures(
    images: Sequence[PreparedImage], kept_stage1: Sequence[Sequence[int]], kept_stage2: Sequence[int]
) -> list[dict[str, Any]]:
    """A plain dict of every picture, in order: its size, its views with their token grids, and what each stage kept.

    ``views`` have ``box`` (left, top, right and bottom in fractions of the picture, outside 0 to 1 where the grid covers
    padding), ``rows``, ``columns`` and ``first``: token ``first + row * columns + column`` stands there.

    Args:
        images: of a request (:attr:`sts_export.requests.request.Request.images`).
        kept_stage1: as in a result: for every picture, positions among its tokens.
        kept_stage2: as in a result: positions among the tokens of all pictures.

    Raises:
        ValueError: other pictures than those of the result, or their places are not known.
    """
    if len(kept_stage1) != len(images):
        raise ValueError(f"stage 1 kept tokens of {len(kept_stage1)} pictures, and there are {len(images)}")
    starts = list(accumulate((image.num_tokens for image in images), initial=0))
    _check(kept_stage2, starts[-1])
    pictures = []
    for image, own, start in zip(images, kept_stage1, starts, strict=False):
        places = image.places
        if places is None:
            raise ValueError("it is not known where the picture's tokens stand")
        _check(own, image.num_tokens)
        picture = {
            "width": places.width,
            "height": places.height,
            "views": [_view(grid) for grid in places.grids],
            "stage1": [int(token) for token in own],
            "stage2": [int(token) - start for token in kept_stage2 if start <= token < start + image.num_tokens],
        }
        pictures.append(picture)
    return pictures


def _view(grid: TokenGrid) -> dict[str, Any]:
    box = [round(edge, _DIGITS) for edge in grid.box]
    return {"box": box, "rows": grid.rows, "columns": grid.columns, "first": grid.first}


def _check(positions: Sequence[int], tokens: int) -> None:
    if positions and not 0 <= min(positions) <= max(positions) < tokens:
        raise ValueError(f"kept tokens {min(positions)} to {max(positions)} are not among {tokens}")
