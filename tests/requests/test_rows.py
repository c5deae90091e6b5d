"""From prompt ids and images to the decoder's rows: places, newlines, positions, and the way back."""

from __future__ import annotations

from functools import partial
from itertools import chain
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.media.prepared import PreparedImage
from sts_export.requests.rows import original_positions, place_images, unpruned_span

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def tiled(rows: int, columns: int) -> PreparedImage:
    """Tokens in rows, a newline at the end of each."""
    row = [VISUAL_ROW] * columns + [NEWLINE_ROW]
    return PreparedImage({}, 1, rows * columns, np.arange(rows * columns), np.array(row * rows))


def grid(rows: int, columns: int) -> PreparedImage:
    """With M-RoPE positions."""
    tokens = rows * columns
    row, column = np.divmod(np.arange(tokens), columns)
    positions = np.stack([np.zeros(tokens, np.int64), row, column])
    return PreparedImage({}, 1, tokens, np.arange(tokens), np.full(tokens, VISUAL_ROW), positions, max(rows, columns))


def prompt(*parts: int | PreparedImage, kept: list[NDArray[np.int64]] | None = None) -> NDArray[np.int64]:
    """Numbers stand for that many text tokens, images for the rows that stage 1 leaves of them."""
    ids: list[int] = []
    left = iter(kept or [])
    for part in parts:
        if isinstance(part, int):
            ids += range(100 + len(ids), 100 + len(ids) + part)
        else:
            tokens = next(left) if kept else np.arange(part.num_tokens)
            ids += [VISUAL_ROW] * len(part.survivors(tokens)[0])
    return np.array(ids, np.int64)


def test_text_alone() -> None:
    ids = prompt(5)
    rows = place_images(ids, [], [], mrope=False, unpruned=False)
    assert rows.input_ids.tolist() == ids.tolist()
    assert (rows.position_ids.tolist(), rows.next_position) == ([0, 1, 2, 3, 4], 5)
    rows = place_images(ids, [], [], mrope=True, unpruned=True)
    assert (rows.position_ids.tolist(), rows.next_position) == ([[0, 1, 2, 3, 4]] * 3, 5)
    assert original_positions(ids, np.arange(5), [], []) == []


def test_newlines_stand_where_the_model_has_them() -> None:
    image, kept = tiled(2, 3), [np.array([1, 2, 5])]
    ids = prompt(2, image, 2, kept=kept)
    before = ids.copy()
    rows = place_images(ids, [image], kept, mrope=False, unpruned=False)
    v, n = VISUAL_ROW, NEWLINE_ROW
    assert rows.input_ids.tolist() == [100, 101, v, v, n, v, n, 107, 108]
    assert rows.position_ids.tolist() == list(range(9)) and rows.next_position == 9
    assert ids.tolist() == before.tolist()  # the caller's are not changed


def test_two_images_side_by_side_keep_their_own_rows() -> None:
    first, second = tiled(1, 2), tiled(2, 1)
    kept = [np.array([0]), np.array([1])]
    rows = place_images(prompt(first, second, 1, kept=kept), [first, second], kept, mrope=False, unpruned=False)
    v, n = VISUAL_ROW, NEWLINE_ROW
    assert rows.input_ids.tolist() == [v, n, n, v, n, 105]


def test_original_positions_count_over_all_images() -> None:
    images = [tiled(2, 3), grid(1, 4), tiled(1, 2)]
    kept = [np.array([0, 4]), np.array([1, 2, 3]), np.array([1])]
    ids = prompt(1, images[0], 2, images[1], images[2], 3, kept=kept)
    rows = place_images(ids, images, kept, mrope=False, unpruned=False).input_ids
    everything = np.arange(len(rows))
    assert original_positions(rows, everything, images, kept) == [0, 4, 6 + 1, 6 + 2, 6 + 3, 10 + 1]
    visual = np.flatnonzero(rows == VISUAL_ROW)
    text = np.setdiff1d(everything, visual)
    assert original_positions(rows, text, images, kept) == []
    assert original_positions(rows, np.sort([*text, *visual[[1, 2, 5]]]), images, kept) == [4, 7, 11]
    # What a longer request of the batch adds at the end is no row of this one.
    assert original_positions(rows, np.append(visual[:1], [len(rows), len(rows) + 5]), images, kept) == [0]


shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))


@fixed
@given(st.lists(st.tuples(st.integers(1, 4), shapes), min_size=1, max_size=3), st.integers(0, 4), st.data())
def test_mrope_positions_are_those_of_the_unpruned_prompt(
    parts: list[tuple[int, tuple[int, int]]], tail: int, data: st.DataObject
) -> None:
    """Against transformers' get_rope_index, which knows nothing of pruning, at the rows that are left."""
    images = [grid(*shape) for _, shape in parts]
    kept = [np.array(sorted(data.draw(st.sets(st.integers(0, i.num_tokens - 1), min_size=1)))) for i in images]
    pieces = [piece for (text, _), image in zip(parts, images, strict=True) for piece in (text, image)]
    ids = prompt(*pieces, tail, kept=kept)
    rows = place_images(ids, images, kept, mrope=True, unpruned=True)

    vision = SimpleNamespace(spatial_merge_size=1, tokens_per_second=2)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = partial(Qwen2_5_VLModel.get_vision_position_ids, model)
    kinds = [[kind] * count for (text, (h, w)) in parts for kind, count in ((0, text), (1, h * w))] + [[0] * tail]
    types = torch.tensor([list(chain.from_iterable(kinds))])
    thw = torch.tensor([[1, *shape] for _, shape in parts])
    expected, delta = Qwen2_5_VLModel.get_rope_index(model, torch.zeros_like(types), types, image_grid_thw=thw)
    alive, first = [], 0
    for (text, _), image, tokens in zip(parts, images, kept, strict=True):
        alive += [*range(first, first + text), *(first + text + tokens)]
        first += text + image.num_tokens
    alive += range(first, first + tail)
    np.testing.assert_array_equal(rows.position_ids, expected[:, 0, alive].numpy())
    assert rows.next_position == types.shape[1] + int(delta) == unpruned_span(ids, images)
    assert rows.input_ids.tolist() == ids.tolist()  # no newlines here


@fixed
@given(st.lists(st.tuples(st.integers(0, 3), shapes), min_size=1, max_size=3), st.integers(1, 3), st.data())
def test_every_kept_token_finds_its_way_back(parts: list[tuple[int, tuple[int, int]]], tail: int, data: st.DataObject) -> None:
    images = [tiled(*shape) for _, shape in parts]
    kept = [np.array(sorted(data.draw(st.sets(st.integers(0, i.num_tokens - 1), min_size=1)))) for i in images]
    pieces = [piece for (text, _), image in zip(parts, images, strict=True) for piece in (text, image)]
    ids = prompt(*pieces, tail, kept=kept)
    rows = place_images(ids, images, kept, mrope=False, unpruned=False)
    assert (rows.input_ids == VISUAL_ROW).sum() == sum(map(len, kept))
    assert (rows.input_ids == NEWLINE_ROW).sum() == sum(image.num_newlines for image in images)
    np.testing.assert_array_equal(rows.input_ids[ids >= 0], ids[ids >= 0])
    firsts = np.cumsum([0, *(image.num_tokens for image in images)])
    expected = [int(first + token) for first, tokens in zip(firsts, kept, strict=False) for token in tokens]
    assert original_positions(rows.input_ids, np.arange(len(ids)), images, kept) == expected
