"""Which models are run: the public 7B shapes, or toys of the same families."""

from __future__ import annotations

from dataclasses import dataclass

from sts_export.families import aliases

# Short name -> hub id.
SHAPES = {name: aliases()[name] for name in ("llava-1.5-7b", "llava-next-7b")}
BUDGETS = ("64", "320")
TOY_BUDGETS = ("8",)  # a toy picture has 36 tokens, or 180 in tiles
UNPRUNED = "100%"


@dataclass(frozen=True)
class ModelShape:
    """One model to run.

    Args:
        name: a key of SHAPES.
        toy: a few thousand parameters of the same family instead, float32.
    """

    name: str
    toy: bool

    @property
    def hub_id(self) -> str:
        return SHAPES[self.name]

    @property
    def dtype(self) -> str:
        return "float32" if self.toy else "float16"

    @property
    def picture_side(self) -> int:
        """Pixels of a square picture of which LLaVA-NeXT makes its largest number of tokens: 2 x 2 tiles and the whole."""
        return 2 * (84 if self.toy else 336)
