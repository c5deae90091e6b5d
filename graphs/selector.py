"""Stage 1: choose K tokens of each crop and project only those.

    visual_features -> anchor -> sts::RepulsionSelect -> kept rows -> projector -> visual_embeds

Checkpoint names: ``multi_modal_projector.{linear_1, linear_2}``.
Source: transformers ``models/llava/modeling_llava.py`` (LlavaMultiModalProjector).
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import Dtype, ProjectorConfig, VisionConfig
from sts_export.graphs.contracts import selector_contract
from sts_export.graphs.layers import Linear, Op, activate, concat_dims, dims
from sts_export.graphs.model import build_model
from sts_export.graphs.selection import repulsion_select


class Projector(nn.Module):
    """x: [rows, vision width] -> [rows, LLM width]."""

    def __init__(self, config: ProjectorConfig, dtype: Dtype, *, name: str) -> None:
        super().__init__(name)
        self.activation = config.activation
        self.linear_1 = Linear(config.input_size, config.hidden_size, bias=config.bias, dtype=dtype)
        self.linear_2 = Linear(config.hidden_size, config.hidden_size, bias=config.bias, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.linear_2(op, activate(op, self.linear_1(op, x), self.activation))


def _anchor(op: Op, features: ir.Value, anchor: str, cls_attention: ir.Value | None) -> ir.Value:
    """The first token of each crop, [crops] int64."""
    if anchor == "saliency":
        return op.ArgMax(cls_attention, axis=1, keepdims=0)
    if anchor == "first":
        return op.Expand(op.Constant(value_ints=[0]), dims(op, features, 0, 1))
    x = op.Cast(features, to=ir.DataType.FLOAT)
    offset = op.Sub(x, op.ReduceMean(x, op.Constant(value_ints=[1]), keepdims=1))
    return op.ArgMin(op.ReduceSum(op.Mul(offset, offset), op.Constant(value_ints=[2]), keepdims=0), axis=1, keepdims=0)


def selector(
    vision: VisionConfig, projector: ProjectorConfig, dtype: Dtype, *, prefix: str, keep: int, anchor: str, epsilon: float
) -> ir.Model:
    """The selector graph for K = ``keep``; K = N is the identity and takes no selection at all."""
    module = Projector(projector, dtype, name=prefix)
    pruning = keep < vision.num_tokens
    with_saliency = anchor == "saliency" and pruning
    contract = selector_contract(vision, projector.hidden_size, keep, dtype, with_saliency=with_saliency)

    def forward(op: Op, features: ir.Value, cls_attention: ir.Value | None = None) -> list[ir.Value]:
        crops = dims(op, features, 0, 1)
        if pruning:
            first = _anchor(op, features, anchor, cls_attention)
            kept = op.call(repulsion_select(), features, first, keep=keep, epsilon=epsilon, _outputs=["kept"])
            rows = op.GatherND(features, op.Unsqueeze(kept, op.Constant(value_ints=[2])), batch_dims=1)
        else:
            every = op.Constant(value_ints=list(range(keep)))
            kept = op.Expand(op.Unsqueeze(every, op.Constant(value_ints=[0])), concat_dims(op, crops, keep))
            rows = features
        embeds = module(op, op.Reshape(rows, op.Constant(value_ints=[-1, vision.hidden_size])))
        return [kept, op.Reshape(embeds, op.Constant(value_ints=[-1, keep, projector.hidden_size]))]

    return build_model(contract, forward)
