"""One image, ready for the vision encoder, and how its tokens stand in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.media.content import content_key
from sts_export.media.places import Places
from sts_export.pruning.budget import share_keep


@dataclass(frozen=True)
class PreparedImage:
    """N visual tokens, numbered in the order in which the model reads them.

    Args:
        encoder_inputs: the vision encoder's inputs by name, without a batch of images.
        crops: crops of the image, each with ``crop_rows`` rows of visual_features.
        token_order: [N] int64; the feature row, counted over all crops, of every token.
        rows: [N + newlines] int64; the image's rows of the unpruned prompt: VISUAL_ROW, or NEWLINE_ROW.
        grid_positions: [3, N + newlines] int64; M-RoPE positions of these rows from the image's start, or None.
        grid_span: how far the image moves the position of what follows it under M-RoPE.
        crop_columns: columns of each crop's token grid; its rows of visual_features are in raster order.
        places: where the tokens stand in the picture; None where it is not known.
    """

    encoder_inputs: dict[str, NDArray[Any]]
    crops: int
    crop_rows: int
    token_order: NDArray[np.int64]
    rows: NDArray[np.int64]
    grid_positions: NDArray[np.int64] | None = None
    grid_span: int = 0
    crop_columns: int = 1
    places: Places | None = None

    @cached_property
    def encoder_key(self) -> str:
        """Content of the encoder's inputs, which follow from the picture and from the processor's settings."""
        return content_key(self.encoder_inputs)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.token_order)

    @property
    def num_newlines(self) -> int:
        return len(self.rows) - self.num_tokens

    @property
    def positions(self) -> NDArray[np.int64]:
        """[N + newlines] or, with M-RoPE, [3, N + newlines] int64; unpruned rotary positions from the image's start."""
        return np.arange(len(self.rows)) if self.grid_positions is None else self.grid_positions

    @property
    def span(self) -> int:
        """How far the unpruned image moves the position of what follows it."""
        return len(self.rows) if self.grid_positions is None else self.grid_span

    def quota(self, keep: int) -> NDArray[np.bool_]:
        """[crops, steps] bool: how many choices of stage 1 count in each crop, for K = ``keep``."""
        candidates = np.bincount(self.token_order // self.crop_rows, minlength=self.crops).tolist()
        shares = np.array(share_keep(keep, candidates))
        quota: NDArray[np.bool_] = np.arange(shares.max()) < shares[:, None]
        return quota

    def survivors(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the pruned prompt and their unpruned positions: [n] and [n] or [3, n] int64.

        Newlines always stay.  CLS tokens stand before the picture's first row and have its position.

        Args:
            kept: tokens that stage 1 keeps, in the order of the prompt; those below 0 are CLS tokens and come first.  With
                newlines the others ascend.
        """
        cls = int(np.count_nonzero(kept < 0))
        tokens, visual = kept[cls:], self.rows == VISUAL_ROW
        if self.num_newlines:
            number = np.cumsum(visual) - 1  # of the token in each visual row
            rows = np.flatnonzero(~visual | np.isin(number, tokens))
        else:
            rows = np.flatnonzero(visual)[tokens]
        places = np.concatenate([np.zeros(cls, np.int64), rows])
        ids = np.concatenate([np.full(cls, VISUAL_ROW), self.rows[rows]])
        return ids, self.positions[..., places]


@dataclass(frozen=True)
class View:
    """A picture as the vision tower sees it, under a grid of ``columns x rows`` tokens; the first one is number ``first``."""

    picture: Image
    columns: int
    rows: int
    first: int


class ImagePreparer(Protocol):
    """A family's way from a picture to its tokens."""

    def prepare(self, image: Image) -> PreparedImage:
        """An RGB image -> the encoder's inputs.

        Raises:
            ImageError: the family's processor cannot take it.
        """

    def views(self, image: Image) -> Sequence[View]:
        """What the tower sees of an RGB image, for pictures of what was pruned."""
