"""What is measured: the 0.36 B shape with pictures of one crop and of five, and every method at one budget for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.shape import write_checkpoint, write_tiled_checkpoint
from sts_export.media.synthetic import synthetic_image


@dataclass(frozen=True)
class Shape:
    """Pictures of one kind, and the budget for them.

    Args:
        tokens: N, visual tokens of the picture.
        crops: of the picture; all have the same number of tokens.
        budget: average visual tokens of a decoder layer.
        side: of the square picture, in pixels.
        write: makes the checkpoint.
    """

    tokens: int
    crops: int
    budget: int
    side: int
    write: Callable[[Path], None]

    @property
    def crop_tokens(self) -> int:
        """N of one crop."""
        return self.tokens // self.crops

    def picture(self) -> Image.Image:
        """A picture of so many tokens."""
        return synthetic_image(0).resize((self.side, self.side), Image.Resampling.BICUBIC)


SHAPES = (
    Shape(tokens=576, crops=1, budget=64, side=336, write=write_checkpoint),
    Shape(tokens=2880, crops=5, budget=320, side=672, write=write_tiled_checkpoint),
)
