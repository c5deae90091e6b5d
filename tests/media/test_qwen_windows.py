"""Patch coordinates and attention windows, against transformers' own functions and against pictures drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from sts_export.media.qwen_windows import encoder_indices

PATCH = 14  # pixels; any number does
tokens = st.integers(1, 20)


@given(rows=tokens, columns=tokens, merge=st.integers(1, 3), window_tokens=st.integers(1, 6))
@example(rows=2, columns=2, merge=2, window_tokens=4)
@example(rows=4, columns=4, merge=2, window_tokens=4)
@example(rows=5, columns=13, merge=2, window_tokens=4)
@example(rows=1, columns=30, merge=2, window_tokens=4)
@example(rows=30, columns=1, merge=2, window_tokens=4)
@settings(deadline=None, max_examples=200)
def test_same_as_transformers(rows: int, columns: int, merge: int, window_tokens: int) -> None:
    window_patches = window_tokens * merge
    grid = torch.tensor([[1, rows * merge, columns * merge]])
    found = encoder_indices(rows * merge, columns * merge, merge=merge, window_patches=window_patches)

    np.testing.assert_array_equal(found.grid_position_ids, get_vision_position_ids(grid, merge).numpy())

    # transformers gives the merged tokens window after window, and where each window ends in patches.
    token_order, ends = get_vision_window_index(grid, merge, window_patches * PATCH, PATCH)
    patch_order = (token_order[:, None] * merge**2 + torch.arange(merge**2)).flatten().numpy()
    np.testing.assert_array_equal(found.window_index[found.window_mask], patch_order)
    np.testing.assert_array_equal(found.window_mask.sum(1), np.diff(ends.numpy()))


@given(rows=tokens, columns=tokens, merge=st.integers(1, 3), window_tokens=st.integers(1, 6))
@settings(deadline=None, max_examples=200)
def test_what_the_graph_relies_on(rows: int, columns: int, merge: int, window_tokens: int) -> None:
    patches, area = rows * columns * merge**2, (window_tokens * merge) ** 2
    found = encoder_indices(rows * merge, columns * merge, merge=merge, window_patches=window_tokens * merge)
    windows = -(-rows // window_tokens) * -(-columns // window_tokens)
    assert found.grid_position_ids.shape == (patches, 2)
    assert found.window_index.shape == found.window_mask.shape == (windows, area)
    assert found.window_slot.shape == (patches,)
    assert found.window_mask.dtype == np.bool_
    assert {item.dtype for item in vars(found).values()} == {np.dtype(np.int64), np.dtype(np.bool_)}
    assert all(item.flags.c_contiguous for item in vars(found).values())  # bound to the engine as they are

    assert found.window_index.min() >= 0 and found.window_index.max() < patches  # padding is gathered, too
    assert found.window_mask[:, 0].all()  # a window without any key would be NaN
    np.testing.assert_array_equal(found.window_index.ravel()[found.window_slot], np.arange(patches))
    assert found.window_mask.ravel()[found.window_slot].all()
    # Exactly the patches of one square of the image share a window.
    square = found.grid_position_ids // (window_tokens * merge)
    window = found.window_slot // area
    same_square = (square[:, None] == square[None]).all(-1)
    np.testing.assert_array_equal(same_square, window[:, None] == window[None])


def test_by_hand() -> None:
    """2 x 6 patches, tokens of 2 x 2, windows of 4 x 4: a full-width window of 2 tokens, and one of 1."""
    found = encoder_indices(2, 6, merge=2, window_patches=4)
    assert found.grid_position_ids.tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [0, 3], [1, 2], [1, 3]),
        *([0, 4], [0, 5], [1, 4], [1, 5]),
    ]
    assert found.window_index.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, *[0] * 8], [8, 9, 10, 11, *[0] * 12]]
    assert found.window_mask.sum(1).tolist() == [8, 4]
    assert found.window_slot.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("height", "width", "merge", "window_patches"),
    [(3, 4, 2, 8), (4, 3, 2, 8), (0, 4, 2, 8), (4, 0, 2, 8), (-2, 4, 2, 8), (4, 4, 2, 7), (4, 4, 2, 0), (4, 4, 0, 8)],
)
def test_refused(height: int, width: int, merge: int, window_patches: int) -> None:
    with pytest.raises(ValueError, match=r"tokens of -?\d+ x -?\d+ patches"):
        encoder_indices(height, width, merge=merge, window_patches=window_patches)
