"""Positions of kept tokens, picture by picture, and the places of these."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export import Pipeline
from sts_export.bundle.manifest import Bundle
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.media.places import Places, TokenGrid
from sts_export.media.prepared import PreparedImage
from sts_export.serving.page.kept import kept_pictures
from sts_export.testing.checkpoints import random_image


def image(*grids: TokenGrid, size: tuple[int, int] = (40, 30), known: bool = True) -> PreparedImage:
    tokens = sum(grid.columns * grid.rows for grid in grids)
    places = Places(*size, grids) if known else None
    return PreparedImage({}, 1, tokens, np.arange(tokens), np.full(tokens, VISUAL_ROW), places=places)


def test_a_picture_with_two_views() -> None:
    whole, tiles = TokenGrid(2, 2, 0), TokenGrid(3, 4, 4, (-0.1, 0, 1.1, 2 / 3))
    (picture,) = kept_pictures([image(whole, tiles, size=(640, 480))], [[0, 3, 15]], [3])
    assert picture == {
        "width": 640,
        "height": 480,
        "views": [
            {"box": [0, 0, 1, 1], "rows": 2, "columns": 2, "first": 0},
            {"box": [-0.1, 0, 1.1, 0.66667], "rows": 4, "columns": 3, "first": 4},
        ],
        "stage1": [0, 3, 15],
        "stage2": [3],
    }


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_positions_are_each_pictures_own(columns: list[int], data: st.DataObject) -> None:
    images = [image(TokenGrid(wide, 3, 0)) for wide in columns]
    stage1 = [sorted(data.draw(st.sets(st.integers(0, 3 * wide - 1)))) for wide in columns]
    # The numbers that a result has, made one by one: those of the second picture follow those of the first.
    numbers: list[int] = []
    expected: list[list[int]] = []
    for number, own in enumerate(stage1):
        expected.append([token for token in own if data.draw(st.booleans())])
        numbers += [token + sum(3 * wide for wide in columns[:number]) for token in expected[-1]]
    pictures = kept_pictures(images, stage1, numbers)
    assert [picture["stage1"] for picture in pictures] == stage1
    assert [picture["stage2"] for picture in pictures] == expected


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("llava", [(90, 70), (60, 130)]), ("llava_next", [(90, 70), (60, 130)]), ("qwen2_5_vl", [(90, 170)])],
)
def test_results_of_every_family(bundles: dict[str, Bundle], family: str, sizes: list[tuple[int, int]]) -> None:
    with Pipeline(bundles[family].folder, threads=1) as vlm:
        sources = [random_image(seed, size) for seed, size in enumerate(sizes)]
        request = vlm.prepare("What?", sources, max_new_tokens=1)
        result = vlm.generate("What?", sources, max_new_tokens=1)
        pictures = kept_pictures(request.images, result.kept_stage1, result.kept_stage2)
        views = [vlm.seen(source) for source in sources]
    assert json.loads(json.dumps(pictures)) == pictures
    assert [(picture["width"], picture["height"]) for picture in pictures] == sizes
    grids = [[(view["columns"], view["rows"], view["first"]) for view in picture["views"]] for picture in pictures]
    assert grids == [[(view.columns, view.rows, view.first) for view in own] for own in views]
    for stage in ("stage1", "stage2"):
        assert sum(len(picture[stage]) for picture in pictures) == getattr(result.visual_tokens, stage)
    for picture in pictures:
        assert {*picture["stage2"]} <= {*picture["stage1"]}


@pytest.mark.parametrize(
    ("stage1", "stage2", "expected"),
    [
        ([], [], "stage 1 kept tokens of 0 pictures, and there are 1"),
        ([[0], [1]], [], "of 2 pictures, and there are 1"),
        ([[0, 4]], [], "kept tokens 0 to 4 are not among 4"),
        ([[-1, 2]], [], "kept tokens -1 to 2 are not among 4"),
        ([[0]], [0, 7], "kept tokens 0 to 7 are not among 4"),
    ],
)
def test_a_result_of_other_pictures(stage1: Sequence[Sequence[int]], stage2: Sequence[int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        kept_pictures([image(TokenGrid(2, 2, 0))], stage1, stage2)


def test_a_picture_without_places() -> None:
    with pytest.raises(ValueError, match="not known where the picture's tokens stand"):
        kept_pictures([image(TokenGrid(2, 2, 0), known=False)], [[0]], [0])
