"""The two pruning stages as ONNX model-local functions with bodies of standard operators.

ONNX Runtime inlines the bodies; TensorRT prefers a registered plugin of the same name and domain.  So one file is
portable and takes the fast path.  Sources: STS paper, equations 3 to 7.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import build_function

from sts_export.graphs.layers import Op, concat_dims, dims
from sts_export.graphs.model import OPSET, STS_DOMAIN

# Larger than any potential (1 / epsilon per duplicate) and finite, so that engines may not fold it into NaN.
_SELECTED = 1e30
# Below any softmax probability.
_NOT_VISUAL = -1e30
# Rows of a prompt; float32 counts exactly up to 2 ** 24.
_ROW_LIMIT = float(1 << 20)


def _attribute(op: Op, kind: str, name: str) -> ir.Value:
    """The function's attribute ``name`` as a scalar: value_int or value_float."""
    attribute_type = {"value_int": ir.AttributeType.INT, "value_float": ir.AttributeType.FLOAT}[kind]
    scalar = ir.Value(
        name=f"{name}_attribute",
        type=ir.TensorType(ir.DataType.INT64 if kind == "value_int" else ir.DataType.FLOAT),
        shape=ir.Shape([]),
    )
    node = ir.Node("", "Constant", [], [ir.RefAttr(kind, name, attribute_type)], outputs=[scalar], version=OPSET)
    op.builder.graph.append(node)
    return scalar


def _f32(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _i64(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape))


def _bool(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(shape))


def _repulsion_body(op: Op, features: ir.Value, first: ir.Value, candidates: ir.Value, quota: ir.Value) -> list[ir.Value]:
    epsilon = _attribute(op, "value_float", "epsilon")
    x = op.Cast(features, to=ir.DataType.FLOAT)
    # Distances do not depend on the origin; around the mean the Gram matrix loses far fewer digits to cancellation.
    x = op.Sub(x, op.ReduceMean(x, op.Constant(value_ints=[1]), keepdims=1))
    norms = op.ReduceSum(op.Mul(x, x), op.Constant(value_ints=[2]), keepdims=0)  # [crops, rows]
    # The only matrix of rows x rows; what follows from it is computed row by row, since with many rows it is large.
    gram = op.MatMul(x, op.Transpose(x, perm=[0, 2, 1]))
    row = op.Range(op.Constant(value_int=0), op.Squeeze(dims(op, features, 1, 2)), op.Constant(value_int=1))
    taken, least = op.Constant(value_float=_SELECTED), op.Constant(value_float=0.0)

    def step(op: Op, _step: ir.Value, _going: ir.Value, potential: ir.Value, last: ir.Value) -> list[ir.Value]:
        """last: [crops, 1], the token that was chosen before; it repels the others from now on."""
        total = op.Add(norms, op.GatherElements(norms, last, axis=1))
        product = op.GatherND(gram, last, batch_dims=1)
        squared = op.Max(op.Sub(total, op.Mul(product, op.Constant(value_float=2.0))), least)
        repulsion = op.Reciprocal(op.Add(squared, epsilon))
        # A token repels itself without bound, which marks it as taken.
        potential = op.Add(potential, op.Where(op.Equal(row, last), taken, repulsion))
        chosen = op.ArgMin(potential, axis=1, keepdims=1)
        # A constant: without a condition input, TensorRT's parser does not know the body's own one.
        going = op.Constant(value=ir.tensor(np.array(True)))
        return [going, potential, chosen, op.Identity(chosen)]

    body = op.builder.subgraph(
        step,
        [
            _i64("step"),
            ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])),
            _f32("potential", "crops", "rows"),
            _i64("last", "crops", 1),
        ],
        [
            ir.Value(name="still_going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])),
            _f32("next_potential", "crops", "rows"),
            _i64("chosen", "crops", 1),
            _i64("chosen_scan", "crops", 1),
        ],
        name="repulsion_step",
    )
    start = op.Unsqueeze(first, op.Constant(value_ints=[1]))
    # What is no candidate counts as taken from the beginning.
    potential = op.Where(candidates, op.Constant(value_float=0.0), taken)
    trips = op.Squeeze(op.Sub(dims(op, quota, 1, 2), op.Constant(value_ints=[1])))
    # No condition input: with only a trip limit engines know how long the scan output is.
    _, _, others = op.Loop(trips, None, potential, start, body=body, _outputs=["potential_last", "chosen_last", "others"])
    chosen = op.Concat(op.Unsqueeze(start, op.Constant(value_ints=[0])), others, axis=0)  # [steps, crops, 1]
    return [op.Transpose(op.Squeeze(chosen, op.Constant(value_ints=[2])), perm=[1, 0])]


def repulsion_select() -> ir.Function:
    """``sts::RepulsionSelect(features, first, candidates, quota) -> chosen``: stage 1, equations 3 to 5.

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
    return build_function(
        _repulsion_body,
        [
            ir.Value(name="features"),
            _i64("first", "crops"),
            _bool("candidates", "crops", "rows"),
            _bool("quota", "crops", "steps"),
        ],
        domain=STS_DOMAIN,
        name="RepulsionSelect",
        attributes=[ir.Attr("epsilon", ir.AttributeType.FLOAT, None)],
        opset_imports={"": OPSET},
    )


def _last_token_body(
    op: Op,
    query: ir.Value,
    key: ir.Value,
    attention_mask: ir.Value,
    visual_mask: ir.Value,
    visual_embeds: ir.Value,
    stage2_slots: ir.Value,
) -> list[ir.Value]:
    scale = _attribute(op, "value_float", "scale")
    axis1 = op.Constant(value_ints=[1])
    length = dims(op, attention_mask, 1, 2)
    row = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
    last = op.ReduceMax(op.Mul(row, attention_mask), axis1, keepdims=1)  # [batch, 1]
    # A one-hot product picks each request's own last row without a data-dependent slice.
    one_hot = op.Cast(op.Equal(op.Unsqueeze(row, op.Constant(value_ints=[0])), last), to=ir.DataType.FLOAT)
    one_hot = op.Unsqueeze(one_hot, op.Constant(value_ints=[1, 2]))  # [batch, 1, 1, rows]
    query_last = op.MatMul(one_hot, op.Cast(query, to=ir.DataType.FLOAT))  # [batch, heads, 1, head_dim]
    shape = concat_dims(op, dims(op, key, 0, 2), -1, dims(op, key, 3, 4))
    grouped = op.Reshape(query_last, shape)  # [batch, kv_heads, group, head_dim]
    scores = op.MatMul(grouped, op.Transpose(op.Cast(key, to=ir.DataType.FLOAT), perm=[0, 1, 3, 2]))
    allowed = op.And(op.LessOrEqual(row, last), op.Cast(attention_mask, to=ir.DataType.BOOL))  # [batch, rows]
    allowed = op.Unsqueeze(allowed, op.Constant(value_ints=[1, 2]))
    scores = op.Where(allowed, op.Mul(scores, scale), op.Constant(value_float=_NOT_VISUAL))
    attention = op.ReduceMean(op.Softmax(scores, axis=-1), op.Constant(value_ints=[1, 2]), keepdims=0)  # [batch, rows]

    visual_count = dims(op, visual_embeds, 1, 2)
    visual_keep = dims(op, stage2_slots, 0, 1)
    ranked = op.Where(visual_mask, attention, op.Constant(value_float=_NOT_VISUAL))
    _, winners = op.TopK(ranked, visual_keep, axis=1, largest=1, sorted=1, _outputs=["winner_scores", "winners"])
    # Text rows survive, and so do the winners.  In decode the dummy visual row elects row 0, which is text anyway.
    kept = op.Cast(op.Not(visual_mask), to=ir.DataType.FLOAT)
    ones = op.Add(op.Mul(op.Cast(winners, to=ir.DataType.FLOAT), op.Constant(value_float=0.0)), op.Constant(value_float=1.0))
    kept = op.ScatterElements(kept, winners, ones, axis=1)
    order = op.Sub(op.Mul(kept, op.Constant(value_float=_ROW_LIMIT)), op.Cast(row, to=ir.DataType.FLOAT))
    survivors = op.Add(op.Sub(length, visual_count), visual_keep)
    _, kept_rows = op.TopK(order, survivors, axis=1, largest=1, sorted=1, _outputs=["kept_order", "kept_rows"])
    last_row = op.ReduceSum(op.Cast(op.Less(kept_rows, last), to=ir.DataType.INT64), axis1, keepdims=0)
    return [kept_rows, last_row]


def last_token_topk() -> ir.Function:
    """``sts::LastTokenTopK(query, key, attention_mask, visual_mask, visual_embeds, stage2_slots) -> kept_rows, last_row``.

    Stage 2, equations 6 and 7: the last real token's attention over the rows of this call, fp32 softmax per head, mean over
    heads, then the K' largest visual rows; text rows (and padding) always survive.

    Attributes:
        scale: float, 1 / sqrt(head_dim)
    Inputs:
        query: [batch, heads, rows, head_dim], rotated
        key: [batch, kv_heads, rows, head_dim], rotated
        attention_mask: [batch, rows] int64, 1 for real tokens
        visual_mask: [batch, rows] bool, visual rows
        visual_embeds: [batch, visual, hidden]; only its length is read
        stage2_slots: [visual_keep] int64; only its length is read, K' <= visual
    Outputs:
        kept_rows: [batch, rows - visual + visual_keep] int64, ascending; ties go to the lowest row
        last_row: [batch] int64, where the last real token stands among them
    """
    return build_function(
        _last_token_body,
        [
            ir.Value(name="query"),
            ir.Value(name="key"),
            _i64("attention_mask", "batch", "rows"),
            _bool("visual_mask", "batch", "rows"),
            ir.Value(name="visual_embeds"),
            _i64("stage2_slots", "visual_keep"),
        ],
        domain=STS_DOMAIN,
        name="LastTokenTopK",
        attributes=[ir.Attr("scale", ir.AttributeType.FLOAT, None)],
        opset_imports={"": OPSET},
    )
