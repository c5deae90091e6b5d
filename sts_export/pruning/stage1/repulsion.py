"""Stage 1 of STS: repulsion (docs/method.md, "Stage 1").

    d_ij = ||v_i - v_j||^2      U(i | S) = sum over j in S of 1 / (d_ij + epsilon)
    S = {anchor}; then the token of least U, until K are chosen

Source: arXiv 2606.03569, equations 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from sts_export.errors import BudgetError
from sts_export.graphs.needs import CLS_ATTENTION
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

Anchor = Literal["mean", "first", "saliency"]
DEFAULT_EPSILON = 1e-6
MIN_EPSILON = 1e-12
# Finite, so that engines may not fold it into NaN.
_NEVER = 1e30
# float32 numbers: all repulsions of an image are computed beforehand up to this many, 64 MiB, as of one crop of 4096 rows.
MATRIX_LIMIT = 4096 * 4096


@dataclass(frozen=True)
class Repulsion(Stage1):
    """Tokens that lie far from each other.

    Args:
        anchor: the first token: closest to the ``mean``, the ``first`` one, or highest CLS attention (``saliency``).
        epsilon: added to squared distances in the potential.
    """

    name: ClassVar[str] = "repulsion"
    summary: ClassVar[str] = "tokens far from each other in feature space (STS)"
    plugin: ClassVar[str | None] = "RepulsionSelect"

    anchor: Anchor = "mean"
    epsilon: float = DEFAULT_EPSILON

    def __post_init__(self) -> None:
        super().__post_init__()
        # Potentials of duplicates, N / epsilon, must stay far below that of what is taken.
        if self.epsilon < MIN_EPSILON:
            raise BudgetError(f"epsilon must be a finite number of at least {MIN_EPSILON:g}, not {self.epsilon}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({CLS_ATTENTION}) if self.anchor == "saliency" else frozenset()

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.stages import Stage1Choice

        cls_attention = inputs.tower.get(CLS_ATTENTION)
        first = _anchor(op, inputs.features, inputs.candidates, self.anchor, cls_attention)
        operands = inputs.features, first, inputs.candidates, inputs.quota
        function = repulsion_select(by_row=_by_row(inputs.max_crops, inputs.max_rows))
        return Stage1Choice(op.call(function, *operands, epsilon=self.epsilon, _outputs=["chosen"]))

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # Of the matrices [crops, rows, rows], three at once: products, sums of norms and their difference.
        matrices = 1 if _by_row(max_crops, max_rows) else 3
        return matrices * _matrix_size(max_crops, max_rows) * 4


STAGE = Repulsion


def _matrix_size(crops: int, rows: int) -> int:
    """Numbers in a matrix of all pairs of rows of each crop."""
    return crops * rows**2


def _by_row(max_crops: int, max_rows: int) -> bool:
    """Which form of the function a graph takes."""
    return _matrix_size(max_crops, max_rows) > MATRIX_LIMIT


def _anchor(op: Op, features: ir.Value, candidates: ir.Value, anchor: str, cls_attention: ir.Value | None) -> ir.Value:
    """The first token of each crop, [crops] int64, one of its candidates [crops, rows]."""
    import onnx_ir as ir

    never = op.Constant(value_float=_NEVER)
    if anchor == "saliency":
        return op.ArgMax(op.Where(candidates, cls_attention, op.Neg(never)), axis=1, keepdims=0)
    if anchor == "first":
        return op.ArgMax(op.Cast(candidates, to=ir.DataType.INT32), axis=1, keepdims=0)
    axis1 = op.Constant(value_ints=[1])
    x = op.Cast(features, to=ir.DataType.FLOAT)
    weight = op.Unsqueeze(op.Cast(candidates, to=ir.DataType.FLOAT), op.Constant(value_ints=[2]))
    count = op.Max(op.ReduceSum(weight, axis1, keepdims=1), op.Constant(value_float=1.0))
    offset = op.Sub(x, op.Div(op.ReduceSum(op.Mul(x, weight), axis1, keepdims=1), count))
    distance = op.ReduceSum(op.Mul(offset, offset), op.Constant(value_ints=[2]), keepdims=0)
    return op.ArgMin(op.Where(candidates, distance, never), axis=1, keepdims=0)


def _repulsion_body(
    op: Op, features: ir.Value, first: ir.Value, candidates: ir.Value, quota: ir.Value, *, by_row: bool
) -> list[ir.Value]:
    import onnx_ir as ir

    from sts_export.graphs.functions import attribute
    from sts_export.graphs.layers import dims
    from sts_export.graphs.stage1.greedy import TAKEN, choose_least, mark_diagonal
    from sts_export.graphs.stage1.rows import row_numbers

    epsilon = attribute(op, "value_float", "epsilon")
    x = op.Cast(features, to=ir.DataType.FLOAT)
    axis1, axis2 = (op.Constant(value_ints=[axis]) for axis in (1, 2))
    # Distances do not depend on the origin; around the mean the Gram matrix loses far fewer digits to cancellation.
    x = op.Sub(x, op.ReduceMean(x, axis1, keepdims=1))
    norms = op.ReduceSum(op.Mul(x, x), axis2, keepdims=0)  # [crops, rows]
    gram = op.MatMul(x, op.Transpose(x, perm=[0, 2, 1]))
    row = row_numbers(op, features, 1)
    taken, least, two = (op.Constant(value_float=number) for number in (TAKEN, 0.0, 2.0))

    def repulsion(op: Op, norm_sums: ir.Value, products: ir.Value) -> ir.Value:
        squared = op.Max(op.Sub(norm_sums, op.Mul(products, two)), least)
        return op.Reciprocal(op.Add(squared, epsilon))

    # A token repels itself without bound, which marks it as taken.
    matrix = None
    if not by_row:
        among_all = repulsion(op, op.Add(op.Unsqueeze(norms, axis2), op.Unsqueeze(norms, axis1)), gram)
        matrix = mark_diagonal(op, among_all, row, features)  # [crops, rows, rows]

    def repelled(op: Op, potential: ir.Value, last: ir.Value) -> ir.Value:
        """The token that was chosen last repels the others from now on."""
        if matrix is None:
            norm_sums = op.Add(norms, op.GatherElements(norms, last, axis=1))
            of_last = repulsion(op, norm_sums, op.GatherND(gram, last, batch_dims=1))
            of_last = op.Where(op.Equal(row, last), taken, of_last)
        else:
            of_last = op.GatherND(matrix, last, batch_dims=1)
        return op.Add(potential, of_last)

    # What is no candidate counts as taken from the beginning.
    potential = op.Where(candidates, least, taken)
    first, steps = op.Unsqueeze(first, axis1), dims(op, quota, 1, 2)
    return [choose_least(op, potential, first, steps, repelled, name="repulsion_step")]


def repulsion_select(*, by_row: bool = False) -> ir.Function:
    """``sts::RepulsionSelect(features, first, candidates, quota) -> chosen``: stage 1, equations 3 to 5.

    Both forms choose the same, since each number comes from the same float32 operations.

    Args:
        by_row: compute a token's repulsions when it has been chosen, and hold one matrix [crops, rows, rows].  Otherwise all
            are computed beforehand, three such matrices are held for a while, and a step is three operators: each is a
            launch and more on a GPU.
    Attributes:
        epsilon: float
    Inputs:
        features: [crops, rows, width] float32, float16 or bfloat16
        first: [crops] int64, the anchor of each crop
        candidates: [crops, rows] bool; rows that may be chosen
        quota: [crops, steps] bool; only its shape is read
    Output:
        chosen: [crops, steps] int64, in the order of choice; ties go to the lowest row.  Once a crop has no candidate left
            its further choices mean nothing
    """
    import onnx_ir as ir

    from sts_export.graphs.functions import function, tensor

    inputs = [
        tensor("features"),
        tensor("first", ir.DataType.INT64, "crops"),
        tensor("candidates", ir.DataType.BOOL, "crops", "rows"),
        tensor("quota", ir.DataType.BOOL, "crops", "steps"),
    ]
    return function("RepulsionSelect", partial(_repulsion_body, by_row=by_row), inputs, {"epsilon": ir.AttributeType.FLOAT})
