"""Stage 1 of VisionZip: dominant tokens are kept, the others merged into evenly spaced contextual ones.

    C = max(1, round(10 K / 64)), D = K - C
    dominant: CLS and the D - 1 tokens of largest CLS attention (or the D of largest received attention, without a CLS)
    of the n others in reading order, the C numbers 0, s, 2 s, ... are targets, s = max(1, n // C)
    every other token joins the target whose mean key has the largest cosine with its own; target += mean of what joined it

Source: arXiv 2412.04467 and its public code; features are those before the projector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sts_export.graphs.needs import CLS_ATTENTION, CLS_FEATURES, MEAN_KEYS, RECEIVED_ATTENTION
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

Score = Literal["cls", "received"]
# Contextual tokens are 10 of 64, rounded.
_CONTEXTUAL, _OF = 10, 64


@dataclass(frozen=True)
class VisionZip(Stage1):
    """Tokens of largest attention, and the others merged.

    Args:
        score: attention of ``cls``, whose token is kept, too; or what tokens have ``received`` from all others.
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "largest CLS attention, and the others merged by their keys (VisionZip)"
    merges: ClassVar[bool] = True

    score: Score = "cls"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({MEAN_KEYS, *((CLS_ATTENTION, CLS_FEATURES) if self.score == "cls" else (RECEIVED_ATTENTION,))})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        import onnx_ir as ir

        from sts_export.graphs.layers import dims
        from sts_export.graphs.stage1.merging import join, replace_rows
        from sts_export.graphs.stage1.rows import (
            ascending,
            largest_candidates,
            mark,
            numbers,
            row_numbers,
            true_count,
            unit_rows,
        )
        from sts_export.graphs.stages import Stage1Choice

        features, candidates, quota = inputs.features, inputs.candidates, inputs.quota
        has_cls = self.score == "cls"
        score = inputs.tower[CLS_ATTENTION if has_cls else RECEIVED_ATTENTION]
        steps, zero, one = dims(op, quota, 1, 2), op.Constant(value_int=0), op.Constant(value_int=1)
        keep, tokens = true_count(op, quota), true_count(op, candidates)
        drops = op.And(op.Greater(keep, zero), op.Less(keep, tokens))  # [crops, 1]
        contextual = _contextual(op, keep)
        dominant_count = op.Sub(keep, contextual)  # the CLS token included
        of_tokens = op.Sub(dominant_count, one) if has_cls else dominant_count

        order = largest_candidates(op, score, candidates, quota)
        dominant = mark(op, order, op.Less(row_numbers(op, quota, 1), of_tokens), candidates)
        rest = op.And(op.And(candidates, op.Not(dominant)), drops)
        place = op.Sub(op.CumSum(op.Cast(rest, to=ir.DataType.INT64), one), one)
        spacing = op.Max(op.Div(true_count(op, rest), contextual), one)
        slot = op.Div(place, spacing)
        is_target = op.And(op.Equal(op.Mul(slot, spacing), place), op.Less(slot, contextual))
        is_target = op.And(is_target, rest)

        most = _contextual(op, steps)  # [1], of any crop
        targets = ascending(op, is_target, most)
        counted = op.And(op.Less(numbers(op, most), contextual), drops)
        joining = op.And(rest, op.Not(is_target))
        joined = join(op, features, unit_rows(op, inputs.tower[MEAN_KEYS]), targets, counted, joining)
        mean = op.Div(joined.sums, op.Max(joined.counts, op.Constant(value_float=1.0)))
        merged = replace_rows(op, features, targets, counted, op.Add(joined.features, mean))

        kept = op.Or(op.And(op.Or(dominant, is_target), drops), op.And(candidates, op.Not(drops)))
        if has_cls:
            kept = _with_column(op, kept, op.And(drops, op.Greater(dominant_count, zero)))
        chosen = ascending(op, kept, steps)
        last = None
        if inputs.max_crops == 1:
            contextual_rows = _with_column(op, is_target, None) if has_cls else is_target
            behind = op.GatherElements(op.Cast(contextual_rows, to=ir.DataType.FLOAT), chosen, axis=1)
            last = op.And(op.Greater(behind, op.Constant(value_float=0.5)), quota)
        return Stage1Choice(chosen, merged, joined.rows, last)

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # Similarities and joins of rows and targets, a few of them, and features in float32.
        return 4 * max_crops * max_rows * (max_rows * _CONTEXTUAL // _OF) * 4


STAGE = VisionZip


def _contextual(op: Op, keep: ir.Value) -> ir.Value:
    """C of K, both int64."""
    ten, half, of = (op.Constant(value_int=number) for number in (_CONTEXTUAL, _OF // 2, _OF))
    return op.Max(op.Div(op.Add(op.Mul(keep, ten), half), of), op.Constant(value_int=1))


def _with_column(op: Op, marked: ir.Value, column: ir.Value | None) -> ir.Value:
    """``marked`` [crops, rows] bool and one place more for the CLS token: ``column`` [crops, 1] bool, or false."""
    import onnx_ir as ir

    from sts_export.graphs.layers import concat_dims, dims

    if column is None:
        false = op.Constant(value_float=0.0)
        numbers = op.Expand(false, concat_dims(op, dims(op, marked, 0, 1), 1))
    else:
        numbers = op.Cast(column, to=ir.DataType.FLOAT)
    both = op.Concat(op.Cast(marked, to=ir.DataType.FLOAT), numbers, axis=1)
    return op.Greater(both, op.Constant(value_float=0.5))
