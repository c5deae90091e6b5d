"""Stage 1: choose K tokens of an image and project only those.

    visual_features -> stage 1, crop by crop -> kept rows in the order of the prompt -> projector -> visual_embeds

A stage that compares projected rows has all of them projected before it.  A stage that reads the prompt is given the LLM's
embeddings of its text.  A stage that may choose CLS tokens has each crop's as one row more.

Checkpoint names: ``multi_modal_projector.{linear_1, linear_2}``, and ``embed_tokens.weight`` under the decoder's prefix; towers
that end in the LLM's width have no projector.
Source: transformers ``models/llava/modeling_llava.py`` (LlavaMultiModalProjector).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import Dtype, ProjectorConfig
from sts_export.graphs.contracts import TensorSpec, selector_contract
from sts_export.graphs.kept_tokens import candidate_rows, keep_chosen, merged_into
from sts_export.graphs.layers import DTYPES, Linear, Op, activate, concat_dims, dims
from sts_export.graphs.model import build_model
from sts_export.graphs.needs import CLS_FEATURES, PROJECTED, TEXT
from sts_export.graphs.stages import Stage1Builder, Stage1Inputs


@dataclass(frozen=True)
class TextTable:
    """The LLM's embedding of text: its parameters are named ``prefix`` + ``embed_tokens.weight``: [vocab, hidden]."""

    prefix: str
    vocab_size: int


class Projector(nn.Module):
    """x: [rows, vision width] -> [rows, LLM width]."""

    def __init__(self, config: ProjectorConfig, dtype: Dtype, *, name: str) -> None:
        super().__init__(name)
        self.activation = config.activation
        self.linear_1 = Linear(config.input_size, config.hidden_size, bias=config.bias, dtype=dtype)
        self.linear_2 = Linear(config.hidden_size, config.hidden_size, bias=config.bias, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.linear_2(op, activate(op, self.linear_1(op, x), self.activation))


class TextEmbedding(nn.Module):
    """ids: [text] int64 -> [text, LLM width]."""

    def __init__(self, table: TextTable, hidden_size: int, dtype: Dtype) -> None:
        super().__init__(table.prefix)
        self.embed_tokens = EmbeddingWeight(table.vocab_size, hidden_size, dtype)

    def forward(self, op: Op, ids: ir.Value) -> ir.Value:
        return self.embed_tokens(op, ids)


class EmbeddingWeight(nn.Module):
    """weight: [vocab, width]."""

    def __init__(self, vocab_size: int, width: int, dtype: Dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter([vocab_size, width], DTYPES[dtype])

    def forward(self, op: Op, ids: ir.Value) -> ir.Value:
        return op.Gather(self.weight, ids)


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
    needs: Set[str] = frozenset(),
    merges: bool = False,
    text: TextTable | None = None,
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
        needs: of stage 1 (``graphs.needs``).
        merges: stage 1 merges what it drops into what it keeps.
        text: the LLM's embedding, for a stage 1 that needs text.
    """
    module = None if projector is None else Projector(projector, dtype, name=prefix)
    contract = selector_contract(features, hidden_size, dtype, needs, merges=merges)

    def project(op: Op, rows: ir.Value) -> ir.Value:
        return rows if module is None else module(op, rows)

    def given_to_stage(op: Op, given: dict[str, ir.Value], candidates: ir.Value) -> Stage1Inputs:
        features, projected, embedded = given["visual_features"], None, None
        if PROJECTED in needs:
            rows = project(op, op.Reshape(features, concat_dims(op, -1, width)))
            projected = op.Reshape(rows, concat_dims(op, dims(op, features, 0, 2), hidden_size))
        if TEXT in needs and text is not None:
            embedded = TextEmbedding(text, hidden_size, dtype)(op, given["text_ids"])
        return Stage1Inputs(
            features,
            candidates,
            given["quota"],
            max_crops,
            max_rows,
            {spec.name: given[spec.name] for spec in tower},
            projected=projected,
            text=embedded,
            seed=given.get("seed"),
            columns=given.get("grid_columns"),
        )

    tower = features[1:]

    def forward(op: Op, *values: ir.Value) -> list[ir.Value]:
        given = {spec.name: value for spec, value in zip(contract.inputs, values, strict=True)}
        rows, quota, order = given["visual_features"], given["quota"], given["token_order"]
        if stage1 is None:
            kept = op.Min(op.Mul(dims(op, quota, 0, 1), dims(op, quota, 1, 2)), op.Shape(order))
            kept_index = op.Range(op.Constant(value_int=0), op.Squeeze(kept), op.Constant(value_int=1))
            flat = op.Reshape(rows, concat_dims(op, -1, width))
            return [kept_index, project(op, op.Gather(flat, op.Gather(order, kept_index)))]
        inputs = given_to_stage(op, given, candidate_rows(op, rows, order))
        choice = stage1(op, inputs)
        kept = keep_chosen(op, choice, rows, order, quota, with_cls=CLS_FEATURES in needs)
        if inputs.projected is not None and choice.features is None and CLS_FEATURES not in needs:
            embeds = op.Gather(op.Reshape(inputs.projected, concat_dims(op, -1, hidden_size)), kept.rows)
        else:
            table = rows if choice.features is None else choice.features
            if CLS_FEATURES in needs:
                table = op.Concat(table, op.Unsqueeze(given[CLS_FEATURES], op.Constant(value_ints=[1])), axis=1)
            embeds = project(op, op.Gather(op.Reshape(table, concat_dims(op, -1, width)), kept.rows))
        return [kept.index, embeds, *([merged_into(op, choice.joined, rows, order)] if merges else [])]

    return build_model(contract, forward)
