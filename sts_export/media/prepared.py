"""One image, ready for the vision encoder, and how its tokens stand in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sts_export.graphs.contracts import VISUAL_ROW
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
    """

    encoder_inputs: dict[str, NDArray[Any]]
    crops: int
    crop_rows: int
    token_order: NDArray[np.int64]
    rows: NDArray[np.int64]
    grid_positions: NDArray[np.int64] | None = None
    grid_span: int = 0

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

    def surviving_rows(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of ``rows`` are left when stage 1 keeps the tokens ``kept``, ascending; newlines always are."""
        number = np.cumsum(self.rows == VISUAL_ROW) - 1  # of the token in each visual row
        return np.flatnonzero((self.rows != VISUAL_ROW) | np.isin(number, kept))


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
