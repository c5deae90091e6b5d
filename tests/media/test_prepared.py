"""Shares of crops and surviving rows of an image, against definitions written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.media.prepared import PreparedImage
from sts_export.pruning.budget import share_keep

CROP_ROWS = 9
fixed = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@st.composite
def prepared(draw: st.DrawFn) -> PreparedImage:
    """One to four crops of which some rows are read, in any order, with newlines anywhere."""
    crops = draw(st.integers(1, 4))
    read = draw(st.lists(st.integers(0, crops * CROP_ROWS - 1), min_size=1, unique=True))
    newlines = draw(st.integers(0, 5))
    rows = draw(st.permutations([VISUAL_ROW] * len(read) + [NEWLINE_ROW] * newlines))
    return PreparedImage({}, crops, CROP_ROWS, np.array(read), np.array(rows))


@fixed
@given(prepared(), st.data())
def test_quota_counts_the_share_of_every_crop(image: PreparedImage, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, image.num_tokens))
    quota = image.quota(keep)
    candidates = [sum(int(row) // CROP_ROWS == crop for row in image.token_order) for crop in range(image.crops)]
    assert quota.dtype == bool and quota.shape[0] == image.crops
    shares = quota.sum(1).tolist()
    assert sum(shares) == keep and shares == share_keep(keep, candidates)
    assert all(share <= count for share, count in zip(shares, candidates, strict=True))
    assert quota.shape[1] == max(shares)  # no step in which no crop chooses
    for row, share in zip(quota, shares, strict=True):
        assert row.tolist() == [True] * share + [False] * (len(row) - share)


@fixed
@given(prepared(), st.data())
def test_newlines_and_kept_tokens_survive_in_their_order(image: PreparedImage, data: st.DataObject) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, image.num_tokens - 1), min_size=1)))
    expected, token = [], 0
    for number, row in enumerate(image.rows):
        if row == NEWLINE_ROW:
            expected.append(number)
        else:
            if token in kept:
                expected.append(number)
            token += 1
    rows, positions = image.survivors(np.array(kept))
    assert rows.tolist() == image.rows[expected].tolist()
    assert positions.tolist() == image.positions[..., expected].tolist()
    assert len(rows) == len(kept) + image.num_newlines


@fixed
@given(prepared(), st.integers(1, 3))
def test_cls_tokens_stand_before_the_picture_at_its_first_position(image: PreparedImage, count: int) -> None:
    kept = np.array([*range(-count, 0), 0])
    rows, positions = image.survivors(kept)
    alone, of_alone = image.survivors(np.array([0]))
    assert rows.tolist() == [VISUAL_ROW] * count + alone.tolist()
    assert positions[..., count:].tolist() == of_alone.tolist()
    assert (positions[..., :count] == image.positions[..., :1]).all()


def test_without_newlines_tokens_stand_in_the_order_that_stage_1_says() -> None:
    image = PreparedImage({}, 1, 6, np.arange(6), np.full(6, VISUAL_ROW))
    _, positions = image.survivors(np.array([-1, 4, 0, 2]))
    assert positions.tolist() == [0, 4, 0, 2]


@fixed
@given(prepared())
def test_nothing_is_lost_where_all_is_kept(image: PreparedImage) -> None:
    rows, positions = image.survivors(np.arange(image.num_tokens))
    assert rows.tolist() == image.rows.tolist() and positions.tolist() == image.positions.tolist()
    assert image.num_tokens == len(image.token_order) and image.num_newlines == (image.rows == NEWLINE_ROW).sum()
