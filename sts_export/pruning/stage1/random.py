"""K tokens at random, without replacement, the same for a seed on every engine (docs/methods/random.md).

The K largest keys of ``graphs.random_keys`` for the words 1, number of the crop and place in the crop's grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import SEED
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

# The first word of keys of stage 1.
_STAGE1 = 1


@dataclass(frozen=True)
class Random(Stage1):
    """By the request's seed; the picture does not matter."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "tokens at random, by the request's seed (baseline)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SEED})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.random_keys import random_keys
        from sts_export.graphs.stage1.rows import largest_candidates, row_numbers
        from sts_export.graphs.stages import Stage1Choice

        crop = op.Unsqueeze(row_numbers(op, inputs.candidates, 0), op.Constant(value_ints=[1]))  # [crops, 1]
        keys = random_keys(op, inputs.seed, _STAGE1, crop, row_numbers(op, inputs.candidates, 1))
        return Stage1Choice(largest_candidates(op, keys, inputs.candidates, inputs.quota))


STAGE = Random
