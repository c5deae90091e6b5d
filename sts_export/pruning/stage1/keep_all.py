"""No stage 1: every visual token goes into the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs


@dataclass(frozen=True)
class KeepAll(Stage1):
    """K = N, so that there is nothing to choose."""

    name: ClassVar[str] = "keep-all"
    summary: ClassVar[str] = "drops nothing: K = N"
    keeps_all: ClassVar[bool] = True

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        """All candidates of a crop, which come first, and then rows that count for nothing."""
        import onnx_ir as ir

        from sts_export.graphs.layers import dims
        from sts_export.graphs.stages import Stage1Choice

        first = op.Cast(inputs.candidates, to=ir.DataType.FLOAT)
        _, chosen = op.TopK(first, dims(op, inputs.quota, 1, 2), axis=1, _outputs=["candidates_first", "chosen"])
        return Stage1Choice(chosen)


STAGE = KeepAll
