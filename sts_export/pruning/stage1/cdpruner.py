"""Stage 1 of CDPruner: a determinantal point process of tokens that differ and are relevant to the prompt, greedily.

    S_ij = cosine of features,  t_i = -mean over text tokens of the cosine of projected token and text embedding
    r = 1 - w + w (t - min t) / (max t - min t + 1e-6), the extremes over the whole picture
    L_ij = r_i S_ij r_j,  d2 = diag L;  repeat: j = argmax d2,  e = (L_j - sum of c_j c) / sqrt(d2_j),  d2 -= e^2,  c gets e

Source: arXiv 2506.10967 and its public code, with the weight w of OpenVINO GenAI.  Roots are of at least 1e-12.  Of a token
whose d2 is below 1e-5 of its r^2 float32 cannot tell what the chosen ones leave: its d2 counts as 1e-12, and its e as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sts_export.errors import BudgetError
from sts_export.graphs.needs import PROJECTED, TEXT
from sts_export.pruning.stage import Stage1

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op
    from sts_export.graphs.stages import Stage1Choice, Stage1Inputs

_LEAST = 1e-12  # of what is left of a token
_SPANNED = 1e-5  # share of its own r^2, below which nothing is left of a token
_TAKEN = -1.0  # in its place, once it is chosen
_SPREAD = 1e-6  # added to the range of relevances
_FAR = 1e30


@dataclass(frozen=True)
class CDPruner(Stage1):
    """Tokens that are unlike each other and like the prompt.

    Args:
        relevance_weight: w, from 0 (the prompt does not matter) to 1.
    """

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "diverse tokens that are relevant to the prompt (CDPruner)"

    relevance_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.relevance_weight <= 1:
            raise BudgetError(f"relevance_weight must be between 0 and 1, not {self.relevance_weight}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({PROJECTED, TEXT})

    def build(self, op: Op, inputs: Stage1Inputs) -> Stage1Choice:
        from sts_export.graphs.stage1.rows import unit_rows
        from sts_export.graphs.stages import Stage1Choice

        axis1, axis2 = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
        relevance = self._relevance(op, inputs)
        unit = unit_rows(op, inputs.features)
        kernel = op.MatMul(unit, op.Transpose(unit, perm=[0, 2, 1]))
        kernel = op.Mul(op.Mul(kernel, op.Unsqueeze(relevance, axis1)), op.Unsqueeze(relevance, axis2))
        left = op.Where(inputs.candidates, op.Mul(relevance, relevance), op.Constant(value_float=_TAKEN))
        return Stage1Choice(op.call(greedy_dpp(), kernel, left, inputs.quota, _outputs=["chosen"]))

    def _relevance(self, op: Op, inputs: Stage1Inputs) -> ir.Value:
        """r, [crops, rows] float32."""
        from sts_export.graphs.stage1.rows import unit_rows

        projected, text = unit_rows(op, inputs.projected), unit_rows(op, inputs.text)
        # The mean of the cosines is the product with the mean of the unit vectors.
        mean = op.ReduceMean(text, op.Constant(value_ints=[0]), keepdims=0)  # [hidden]
        axis1, axis2 = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
        raw = op.Neg(op.Squeeze(op.MatMul(projected, op.Unsqueeze(mean, axis1)), axis2))
        both, far = op.Constant(value_ints=[0, 1]), op.Constant(value_float=_FAR)
        least = op.ReduceMin(op.Where(inputs.candidates, raw, far), both, keepdims=1)
        most = op.ReduceMax(op.Where(inputs.candidates, raw, op.Neg(far)), both, keepdims=1)
        spread = op.Add(op.Sub(most, least), op.Constant(value_float=_SPREAD))
        share = op.Div(op.Sub(raw, least), spread)
        weight, rest = op.Constant(value_float=self.relevance_weight), op.Constant(value_float=1 - self.relevance_weight)
        return op.Add(op.Mul(share, weight), rest)

    def scratch_bytes(self, max_crops: int, max_rows: int) -> int:
        # The kernel while it is made, two at once, and the vectors c, of at most all rows; less where fewer are kept.
        return 3 * max_crops * max_rows**2 * 4


STAGE = CDPruner


def _greedy_body(op: Op, kernel: ir.Value, left: ir.Value, quota: ir.Value) -> list[ir.Value]:
    import numpy as np
    import onnx_ir as ir

    from sts_export.graphs.functions import tensor
    from sts_export.graphs.layers import dims
    from sts_export.graphs.stage1.rows import numbers, row_numbers

    axis2, least, taken = op.Constant(value_ints=[2]), op.Constant(value_float=_LEAST), op.Constant(value_float=_TAKEN)
    zero = op.Constant(value_float=0.0)
    spanned = op.Mul(left, op.Constant(value_float=_SPANNED))
    steps = dims(op, quota, 1, 2)
    row, place = row_numbers(op, kernel, 1), numbers(op, steps)

    def step(op: Op, number: ir.Value, _going: ir.Value, left: ir.Value, vectors: ir.Value) -> list[ir.Value]:
        """vectors: [crops, rows, steps], c of the steps before; 0 for those to come."""
        chosen = op.ArgMax(left, axis=1, keepdims=1)
        explained = op.MatMul(vectors, op.Unsqueeze(op.GatherND(vectors, chosen, batch_dims=1), axis2))
        rest = op.Sub(op.GatherND(kernel, chosen, batch_dims=1), op.Squeeze(explained, axis2))
        of_chosen = op.GatherElements(left, chosen, axis=1)
        vector = op.Where(op.Greater(of_chosen, least), op.Div(rest, op.Sqrt(op.Max(of_chosen, least))), zero)
        gone = op.Or(op.Less(left, zero), op.Equal(row, chosen))
        less = op.Sub(left, op.Mul(vector, vector))
        next_left = op.Where(gone, taken, op.Where(op.Less(less, spanned), least, op.Max(less, least)))
        next_vectors = op.Where(op.Equal(place, number), op.Unsqueeze(vector, axis2), vectors)
        # A constant: without a condition input, TensorRT's parser does not know the body's own one.
        return [op.Constant(value=ir.tensor(np.array(True))), next_left, next_vectors, chosen]

    body = op.builder.subgraph(
        step,
        [
            tensor("number", ir.DataType.INT64),
            tensor("going", ir.DataType.BOOL),
            tensor("left_before", ir.DataType.FLOAT, "crops", "rows"),
            tensor("vectors", ir.DataType.FLOAT, "crops", "rows", "steps"),
        ],
        [
            tensor("still_going", ir.DataType.BOOL),
            tensor("next_left", ir.DataType.FLOAT, "crops", "rows"),
            tensor("next_vectors", ir.DataType.FLOAT, "crops", "rows", "steps"),
            tensor("chosen", ir.DataType.INT64, "crops", 1),
        ],
        name="greedy_step",
    )
    vectors = op.Expand(zero, op.Concat(dims(op, kernel, 0, 2), steps, axis=0))
    # No condition input: with only a trip limit engines know how long the scan output is.
    names = ["left_last", "vectors_last", "choices"]
    _, _, choices = op.Loop(op.Squeeze(steps), None, left, vectors, body=body, _outputs=names)
    return [op.Transpose(op.Squeeze(choices, axis2), perm=[1, 0])]


def greedy_dpp() -> ir.Function:
    """``sts::GreedyDpp(kernel, left, quota) -> chosen``: the likeliest set of a determinantal point process, greedily.

    Inputs:
        kernel: [crops, rows, rows] float32, L
        left: [crops, rows] float32, the diagonal of L; below 0 for what is no candidate
        quota: [crops, steps] bool; only its shape is read
    Output:
        chosen: [crops, steps] int64, in the order of choice; ties go to the lowest row.  Once a crop has no candidate left
            its further choices mean nothing
    """
    import onnx_ir as ir

    from sts_export.graphs.functions import function, tensor

    inputs = [
        tensor("kernel", ir.DataType.FLOAT, "crops", "rows", "rows"),
        tensor("left", ir.DataType.FLOAT, "crops", "rows"),
        tensor("quota", ir.DataType.BOOL, "crops", "steps"),
    ]
    return function("GreedyDpp", _greedy_body, inputs, {})
