"""From a prompt's token ids and its images to the rows that the decoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.media.prepared import PreparedImage


@dataclass(frozen=True)
class PromptRows:
    """A pruned prompt.

    Args:
        input_ids: [sequence] int64; text, VISUAL_ROW and NEWLINE_ROW.
        position_ids: [sequence] or, with M-RoPE, [3, sequence] int64.
        next_position: rotary position of the first generated token.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    next_position: int


def place_images(
    input_ids: NDArray[np.int64],
    images: Sequence[PreparedImage],
    kept: Sequence[NDArray[np.int64]],
    *,
    mrope: bool,
    unpruned: bool,
) -> PromptRows:
    """Put the rows that stage 1 left of every image into their places.

    Args:
        input_ids: [sequence] int64, VISUAL_ROW in every place of an image, newlines included.
        kept: tokens of each image that stage 1 kept, as :meth:`PreparedImage.survivors` takes them.
        mrope: positions have time, height and width.
        unpruned: rows keep their positions in the unpruned prompt; otherwise they are contiguous.
    """
    ids, places = input_ids.copy(), np.flatnonzero(input_ids == VISUAL_ROW)
    survivors = [image.survivors(tokens) for image, tokens in zip(images, kept, strict=True)]
    places_of = _split(places, [len(rows) for rows, _ in survivors])
    for (rows, _), place in zip(survivors, places_of, strict=True):
        ids[place] = rows
    axes = (3,) if mrope else ()
    if not unpruned:
        return PromptRows(ids, np.broadcast_to(np.arange(len(ids)), (*axes, len(ids))), len(ids))
    positions = np.empty((*axes, len(ids)), np.int64)
    row = current = 0
    for image, (_, of_rows), place in zip(images, survivors, places_of, strict=True):
        text = int(place[0]) - row
        positions[..., row : place[0]] = current + np.arange(text)
        positions[..., place] = current + text + of_rows
        current, row = current + text + image.span, int(place[-1]) + 1
    positions[..., row:] = current + np.arange(len(ids) - row)
    return PromptRows(ids, positions, current + len(ids) - row)


def _split(places: NDArray[np.int64], counts: Sequence[int]) -> list[NDArray[np.int64]]:
    """The places of each image; those of one image are neighbours."""
    ends = np.cumsum(counts)
    return np.split(places, ends[:-1]) if len(ends) else []


def unpruned_span(input_ids: NDArray[np.int64], images: Sequence[PreparedImage]) -> int:
    """Rotary position of the first generated token after the unpruned prompt; ``input_ids`` as in :func:`place_images`."""
    text = len(input_ids) - int(np.count_nonzero(input_ids == VISUAL_ROW))
    return text + sum(image.span for image in images)


def unpruned_ids(
    input_ids: NDArray[np.int64], images: Sequence[PreparedImage], rows: Sequence[int], image_token: int
) -> NDArray[np.int64]:
    """The ids of the prompt before pruning, as transformers' processors make them: [tokens] int64.

    Args:
        input_ids: [sequence] int64, VISUAL_ROW in every place that an image keeps after stage 1, newlines included.
        rows: how many places each image has in it.
        image_token: id that fills the places, one for each visual token and newline.
    """
    places, repeats = np.flatnonzero(input_ids == VISUAL_ROW), np.ones(len(input_ids), np.int64)
    first = 0
    for image, count in zip(images, rows, strict=True):
        repeats[places[first]] += image.num_tokens + image.num_newlines - count
        first += count
    return np.repeat(np.where(input_ids == VISUAL_ROW, image_token, input_ids), repeats)


def original_positions(
    input_ids: NDArray[np.int64],
    kept_rows: NDArray[np.int64],
    images: Sequence[PreparedImage],
    kept: Sequence[NDArray[np.int64]],
) -> list[int]:
    """Surviving prompt rows -> positions among the visual tokens of all images, one image after the other; ascending.

    CLS tokens are none of these.

    Args:
        input_ids: [sequence] int64 of the pruned prompt.
        kept_rows: ascending rows that survived stage 2.
        kept: tokens of each image that stage 1 kept, below 0 for CLS tokens.
    """
    first, numbers = 0, [np.empty(0, np.int64)]
    for image, tokens in zip(images, kept, strict=True):
        numbers.append(np.where(tokens < 0, -1, first + tokens))
        first += image.num_tokens
    visual_rows = np.flatnonzero(input_ids == VISUAL_ROW)
    surviving = np.concatenate(numbers)[np.isin(visual_rows, kept_rows)]
    return sorted(surviving[surviving >= 0].tolist())
