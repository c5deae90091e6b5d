"""Visual rows at random: a baseline.  The K' of largest key; keys follow from the request's seed and the number of the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.graphs.needs import SEED
from sts_export.pruning.stage import Stage2

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage2Inputs

# Words of the keys: of stage 2, and of no crop; the row follows.
_STAGE, _CROP = 2, 0


@dataclass(frozen=True)
class Random(Stage2):
    """Any K' rows, each as likely as the others; the same ones on every engine."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "any rows, by the request's seed: a baseline"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SEED})

    def build(self, op: Op, inputs: Stage2Inputs) -> tuple[ir.Value, ir.Value]:
        import onnx_ir as ir

        from sts_export.graphs.random_keys import random_keys
        from sts_export.graphs.survivors import keep_largest, prompt_rows

        rows = prompt_rows(op, inputs.attention_mask)
        counted = op.CumSum(op.Cast(inputs.visual_mask, to=ir.DataType.INT64), op.Constant(value_int=1))
        number = op.Max(op.Sub(counted, rows.axis), op.Constant(value_int=0))  # [batch, rows], of visual rows from 0
        keys = random_keys(op, op.Unsqueeze(inputs.seed, rows.axis), _STAGE, _CROP, number)
        return keep_largest(op, keys, rows, inputs.visual_mask, inputs.visual_embeds, inputs.stage2_slots)


STAGE = Random
