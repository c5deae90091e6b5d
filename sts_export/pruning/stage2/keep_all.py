"""No stage 2: what stage 1 keeps goes through all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.pruning.stage import Stage2

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage2Inputs


@dataclass(frozen=True)
class KeepAll(Stage2):
    """K' = K; no attention is computed a second time."""

    name: ClassVar[str] = "keep-all"
    summary: ClassVar[str] = "drops nothing: K' = K"
    keeps_all: ClassVar[bool] = True

    def build(self, op: Op, inputs: Stage2Inputs) -> tuple[ir.Value, ir.Value]:
        from sts_export.graphs.layers import concat_dims, dims

        mask = inputs.attention_mask
        # As many rows as there are; said like this, shapes alone tell engines that it is sequence - visual + visual_keep.
        count = op.Sub(dims(op, mask, 1, 2), dims(op, inputs.visual_embeds, 1, 2))
        count = op.Add(count, dims(op, inputs.stage2_slots, 0, 1))
        rows = op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))
        kept_rows = op.Expand(rows, concat_dims(op, dims(op, mask, 0, 1), count))
        last_row = op.ReduceMax(op.Mul(kept_rows, mask), op.Constant(value_ints=[1]), keepdims=0)
        return kept_rows, last_row


STAGE = KeepAll
