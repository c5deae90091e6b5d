"""Stage 1: choose K tokens of an image and project only those.

    visual_features -> stage 1, crop by crop -> kept rows in reading order -> projector -> visual_embeds

Checkpoint names: ``multi_modal_projector.{linear_1, linear_2}``; towers that end in the LLM's width have no projector.
Source: transformers ``models/llava/modeling_llava.py`` (LlavaMultiModalProjector).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import Dtype, ProjectorConfig
from sts_export.graphs.contracts import TensorSpec, selector_contract
from sts_export.graphs.layers import Linear, Op, activate, concat_dims, dims
from sts_export.graphs.model import build_model
from sts_export.graphs.stages import Stage1Builder, Stage1Inputs

# Tokens of an image; float32 counts exactly up to 2 ** 24.
_TOKEN_LIMIT = float(1 << 20)


class Projector(nn.Module):
    """x: [rows, vision width] -> [rows, LLM width]."""

    def __init__(self, config: ProjectorConfig, dtype: Dtype, *, name: str) -> None:
        super().__init__(name)
        self.activation = config.activation
        self.linear_1 = Linear(config.input_size, config.hidden_size, bias=config.bias, dtype=dtype)
        self.linear_2 = Linear(config.hidden_size, config.hidden_size, bias=config.bias, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.linear_2(op, activate(op, self.linear_1(op, x), self.activation))


def _select(
    op: Op,
    stage1: Stage1Builder,
    features: ir.Value,
    token_order: ir.Value,
    quota: ir.Value,
    tower: Mapping[str, ir.Value],
    *,
    max_crops: int,
    max_rows: int,
) -> tuple[ir.Value, ir.Value]:
    """kept_index [kept]: positions in token_order, those within quota first and ascending; and the features that are kept."""
    crops_rows = dims(op, features, 0, 2)
    all_rows = op.Mul(dims(op, features, 0, 1), dims(op, features, 1, 2))
    table = op.Expand(op.Constant(value_float=0.0), all_rows)
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(token_order))
    read = op.ScatterElements(table, token_order, ones, axis=0)
    candidates = op.Greater(op.Reshape(read, crops_rows), op.Constant(value_float=0.5))

    choice = stage1(op, Stage1Inputs(features, candidates, quota, max_crops, max_rows, tower))
    chosen = choice.chosen
    chosen.type, chosen.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["crops", "steps"])

    # Choices beyond a crop's quota fall into a spare last place.
    offset = op.Mul(
        op.Range(op.Constant(value_int=0), op.Squeeze(dims(op, features, 0, 1)), op.Constant(value_int=1)),
        dims(op, features, 1, 2),
    )
    place = op.Where(quota, op.Add(chosen, op.Unsqueeze(offset, op.Constant(value_ints=[1]))), all_rows)
    place = op.Reshape(place, op.Constant(value_ints=[-1]))
    spare = op.Expand(op.Constant(value_float=0.0), op.Add(all_rows, op.Constant(value_ints=[1])))
    marks = op.ScatterElements(spare, place, op.Expand(op.Constant(value_float=1.0), op.Shape(place)), axis=0)

    position = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(token_order)), op.Constant(value_int=1))
    order = op.Sub(
        op.Mul(op.Gather(marks, token_order), op.Constant(value_float=_TOKEN_LIMIT)), op.Cast(position, to=ir.DataType.FLOAT)
    )
    kept = op.Min(op.Mul(dims(op, quota, 0, 1), dims(op, quota, 1, 2)), op.Shape(token_order))
    _, kept_index = op.TopK(order, kept, axis=0, largest=1, sorted=1, _outputs=["kept_order", "kept"])
    return kept_index, features if choice.features is None else choice.features


def selector(
    features: Sequence[TensorSpec],
    projector: ProjectorConfig | None,
    dtype: Dtype,
    *,
    hidden_size: int,
    width: int,
    prefix: str,
    stage1: Stage1Builder | None,
    max_crops: int,
    max_rows: int,
) -> ir.Model:
    """The selector graph.

    Args:
        features: outputs of the vision encoder: visual_features, and what else ``stage1`` needs of it.
        hidden_size: width of the LLM.
        width: width of visual_features.
        stage1: adds the nodes that choose; None keeps every token, and the graph only brings them into reading order and
            projects them.
        max_crops: of an image.
        max_rows: of a crop.
    """
    module = None if projector is None else Projector(projector, dtype, name=prefix)
    contract = selector_contract(features, hidden_size, dtype)

    def forward(op: Op, features: ir.Value, *others: ir.Value) -> list[ir.Value]:
        *extra, token_order, quota = others
        if stage1 is None:
            kept = op.Min(op.Mul(dims(op, quota, 0, 1), dims(op, quota, 1, 2)), op.Shape(token_order))
            kept_index = op.Range(op.Constant(value_int=0), op.Squeeze(kept), op.Constant(value_int=1))
        else:
            tower = {spec.name: value for spec, value in zip(contract.inputs[1:], extra, strict=False)}
            kept_index, features = _select(
                op, stage1, features, token_order, quota, tower, max_crops=max_crops, max_rows=max_rows
            )
        flat = op.Reshape(features, concat_dims(op, -1, width))
        rows = op.Gather(flat, op.Gather(token_order, kept_index))
        return [kept_index, rows if module is None else module(op, rows)]

    return build_model(contract, forward)
