"""Which models are run: the public 7B shapes, or toys of the same families."""

from __future__ import annotations

from dataclasses import dataclass

from sts_export.families import aliases

# Short name -> the budgets that the project is judged by.
BUDGETS = {"llava-1.5-7b": ("64",), "llava-next-7b": ("320", "160"), "qwen2.5-vl-7b": ("20%",)}
# Short name -> hub id.
SHAPES = {name: aliases()[name] for name in BUDGETS}
TOY_BUDGETS = ("8",)  # a toy picture has 36 tokens, or 180 in tiles
# Pixels of a square picture: in tiles LLaVA-NeXT makes its largest number of tokens of it (2 x 2 and the whole).
_SIDES = {"llava-1.5-7b": 672, "llava-next-7b": 672, "qwen2.5-vl-7b": 1008}
_TOY_SIDE = 168
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
        """Of the weights: what the public ones are stored in."""
        if self.toy:
            return "float32"
        return "bfloat16" if self.name.startswith("qwen") else "float16"

    @property
    def budgets(self) -> tuple[str, ...]:
        """Of its bundles unless others are asked for."""
        return TOY_BUDGETS if self.toy else BUDGETS[self.name]

    @property
    def picture_side(self) -> int:
        """Pixels of a square picture."""
        return _TOY_SIDE if self.toy else _SIDES[self.name]
