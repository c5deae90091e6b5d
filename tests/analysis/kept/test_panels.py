"""What is drawn, made from what a generation returns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sts_export.analysis.kept.panels import Fate, TokenMap, map_at, map_view, name_views, rows_of
from sts_export.media.prepared import View
from tests.analysis.kept.made import panel, token_map


@st.composite
def seen(draw: st.DrawFn) -> tuple[View, list[int], list[int], list[int] | None]:
    """A view, and what was kept and merged of a picture that has more tokens than the view."""
    columns, rows, first, after = (draw(st.integers(low, 4)) for low in (1, 1, 0, 0))
    total = first + columns * rows + after
    kept1 = draw(st.lists(st.integers(0, total - 1), min_size=1, unique=True).map(sorted))
    kept2 = draw(st.lists(st.sampled_from(kept1), unique=True).map(sorted))
    into = st.sampled_from([-1, *kept1])
    merged = draw(st.none() | st.tuples(*(st.just(-1) if token in kept1 else into for token in range(total))).map(list))
    return View(Image.new("RGB", (columns * 14, rows * 14)), columns, rows, first), kept1, kept2, merged


@given(seen())
def test_every_token_has_the_fate_that_the_lists_say(case: tuple[View, list[int], list[int], list[int] | None]) -> None:
    view, kept1, kept2, merged = case
    found = map_view(view, "cat.jpg", kept1, kept2, merged)
    for token, fate in enumerate(found.fates):
        number = token + view.first
        assert (fate in (Fate.KEPT, Fate.DROPPED_INSIDE)) == (number in kept1)
        assert (fate is Fate.KEPT) == (number in kept2)
        if fate is Fate.MERGED:
            assert merged is not None and merged[number] == found.merged_into[token] + view.first
    assert len(found.fates) == view.columns * view.rows
    assert found.counts.stage1 == sum(fate in (Fate.KEPT, Fate.DROPPED_INSIDE) for fate in found.fates)
    assert found.counts.stage2 == found.fates.count(Fate.KEPT)
    pairs = [(source, target) for target, sources in found.targets.items() for source in sources]
    assert sorted(pairs) == sorted(found.merged_into.items()) and list(found.targets) == sorted(found.targets)


def test_merges_are_numbered_within_the_view() -> None:
    view = View(Image.new("RGB", (28, 28)), 2, 2, 4)
    found = map_view(view, "cat.jpg, tiles", [0, 5], [0], [-1, 0, 0, 0, 5, -1, -1, 5])
    assert found.merged_into == {0: 1, 3: 1} and found.targets == {1: [0, 3]}
    assert found.fates == [Fate.MERGED, Fate.DROPPED_INSIDE, Fate.DROPPED_BEFORE, Fate.MERGED]


@pytest.mark.parametrize(("views", "names"), [(1, ["cat.jpg"]), (2, ["cat.jpg, whole", "cat.jpg, tiles"])])
def test_views_have_names(views: int, names: list[str]) -> None:
    assert name_views("cat.jpg", views) == names


def test_models_that_see_a_picture_in_more_views_have_more_rows() -> None:
    one, two = panel(token_map()), panel(token_map(), token_map(2, 2, (0,), (0,)))
    rows = rows_of([one, two])
    assert rows == [(0, 0), (0, 1)]
    assert [isinstance(map_at(one, row), TokenMap) for row in rows] == [True, False]
    assert [map_at(two, row) for row in rows] == two.maps
