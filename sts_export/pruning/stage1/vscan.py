"""Stage 1 of VScan: tokens of largest attention, in each part of the picture and in all of it; the others merged into them.

    16 windows of a quarter of the grid's height and width; in each the (K // 2) // 16 largest of an early layer
    the rest of K: the largest of the feature layer
    every dropped token is added to its most similar kept one (cosine of features), and the sum divided by 1 + their number

Source: arXiv 2505.22654 and its public code; features are those before the projector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sts_export.graphs.needs import (
    CLS_ATTENTION,
    EARLY_CLS_ATTENTION,
    EARLY_RECEIVED_ATTENTION,
    GRID,
    RECEIVED_ATTENTION,
)
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

Score = Literal["cls", "received"]
# score -> attention of the early layer, and of the feature layer.
_ATTENTION = {"cls": (EARLY_CLS_ATTENTION, CLS_ATTENTION), "received": (EARLY_RECEIVED_ATTENTION, RECEIVED_ATTENTION)}
_WINDOWS = 4  # along each side


@dataclass(frozen=True)
class VScan(Stage1):
    """Local and global tokens of largest attention, and the others merged into them.

    Args:
        score: attention of ``cls``, or what tokens have ``received`` from all others.
    """

    name: ClassVar[str] = "vscan"
    summary: ClassVar[str] = "largest CLS attention in each window and in all, the others merged (VScan)"
    merges: ClassVar[bool] = True

    score: Score = "cls"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({*_ATTENTION[self.score], GRID})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.layers import dims
        from sts_export.graphs.stage1.merging import join, replace_rows
        from sts_export.graphs.stage1.rows import NO_CANDIDATE, ascending, largest_candidates, mark, true_count, unit_rows
        from sts_export.graphs.stages import Stage1Choice

        features, candidates, quota = inputs.features, inputs.candidates, inputs.quota
        early, score = (inputs.tower[name] for name in _ATTENTION[self.score])
        local = self._local(op, inputs, early)
        # Behind the local ones, which come first.
        order = op.Where(local, op.Constant(value_float=-NO_CANDIDATE), score)
        kept = mark(op, largest_candidates(op, order, candidates, quota), quota, candidates)
        chosen = ascending(op, kept, dims(op, quota, 1, 2))

        keeps = op.Greater(true_count(op, quota), op.Constant(value_int=0))
        dropped = op.And(op.And(candidates, op.Not(kept)), keeps)
        joined = join(op, features, unit_rows(op, features), chosen, quota, dropped)
        mean = op.Div(op.Add(joined.features, joined.sums), op.Add(joined.counts, op.Constant(value_float=1.0)))
        return Stage1Choice(chosen, replace_rows(op, features, chosen, quota, mean), joined.rows)

    def _local(self, op: Op, inputs: Stage1Inputs, early: ir.Value) -> ir.Value:
        """[crops, rows] bool, the largest of each window."""
        from sts_export.graphs.layers import concat_dims, dims
        from sts_export.graphs.stage1.rows import NO_CANDIDATE, mark, numbers, row_numbers, true_count

        candidates, columns = inputs.candidates, inputs.columns
        row = row_numbers(op, candidates, 1)
        four = op.Constant(value_int=_WINDOWS)
        height = op.Div(dims(op, candidates, 1, 2), columns)
        line = op.Div(row, columns)
        across = op.Div(op.Mul(op.Sub(row, op.Mul(line, columns)), four), columns)
        window = op.Add(op.Mul(op.Div(op.Mul(line, four), height), four), across)  # [rows]
        axis0, axis1 = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
        windows = op.Constant(value_ints=list(range(_WINDOWS**2)))
        inside = op.Equal(op.Unsqueeze(windows, axis1), op.Unsqueeze(window, axis0))  # [windows, rows]
        inside = op.And(inside, op.Unsqueeze(candidates, axis1))  # [crops, windows, rows]
        score = op.Where(inside, op.Unsqueeze(early, axis1), op.Constant(value_float=NO_CANDIDATE))
        most = op.Max(_per_window(op, dims(op, inputs.quota, 1, 2)), op.Constant(value_int=1))
        value, place = op.TopK(score, most, axis=2, largest=1, sorted=1, _outputs=2)
        quota = op.Unsqueeze(_per_window(op, true_count(op, inputs.quota)), axis1)  # [crops, 1, 1]
        # A window with fewer candidates gives what it has.
        counted = op.And(op.Less(numbers(op, most), quota), op.Greater(value, op.Constant(value_float=NO_CANDIDATE / 2)))
        flat = concat_dims(op, dims(op, candidates, 0, 1), -1)
        return mark(op, op.Reshape(place, flat), op.Reshape(counted, flat), candidates)

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # Similarities of rows and kept ones, what is left of them with their mask, and joins; half of the rows kept.
        return 3 * max_crops * max_rows * (max_rows // 2) * 4


STAGE = VScan


def _per_window(op: Op, keep: ir.Value) -> ir.Value:
    """How many a window gives of K, both int64."""
    return op.Div(op.Div(keep, op.Constant(value_int=2)), op.Constant(value_int=_WINDOWS**2))
