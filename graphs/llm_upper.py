"""Decoder layers L..T-1, final norm and language-model head.

    hidden_states of the survivors -> layers L..T-1 -> norm and head of the last real row -> logits

Checkpoint names: ``layers.i`` and ``norm.weight`` under the decoder's prefix, and the head's own.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import llm_upper_contract
from sts_export.graphs.decoder import DecoderLayer, LayerContext, layer_context
from sts_export.graphs.layers import DTYPES, Linear, Op, RMSNorm
from sts_export.graphs.model import build_model


class UpperLayers(nn.Module):
    """Layers L..T-1 under their own numbers, and the final norm."""

    def __init__(self, config: DecoderConfig, prune_layer: int, dtype: Dtype) -> None:
        super().__init__()
        self.layers = NumberedLayers(config, prune_layer, dtype)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(
        self, op: Op, x: ir.Value, last_row: ir.Value, context: LayerContext, caches: list[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value]]:
        x, updated = self.layers(op, x, context, caches)
        width = int(self.norm.weight.shape[0])
        rows = op.Reshape(x, op.Concat(context.batch_rows, op.Constant(value_ints=[width]), axis=0))
        last = op.GatherND(rows, op.Unsqueeze(last_row, op.Constant(value_ints=[1])), batch_dims=1)  # [batch, width]
        return self.norm(op, last), updated


class NumberedLayers(nn.Module):
    """A layer list that starts at layer L."""

    def __init__(self, config: DecoderConfig, prune_layer: int, dtype: Dtype) -> None:
        super().__init__()
        for index in range(prune_layer, config.num_layers):
            setattr(self, str(index), DecoderLayer(config, dtype))

    def forward(self, op: Op, x: ir.Value, context: LayerContext, caches: list[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        updated: list[ir.Value] = []
        for index, layer in enumerate(self.children()):
            x, key_cache, value_cache, _, _ = layer(op, x, caches[2 * index], caches[2 * index + 1], context)
            updated += [key_cache, value_cache]
        return x, updated


class TiedHead(nn.Module):
    """The head of a model that shares the embedding matrix.  weight: [vocab, width]."""

    def __init__(self, config: DecoderConfig, dtype: Dtype) -> None:
        super().__init__()
        self.embed_tokens = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.embed_tokens(op, x)


def llm_upper(
    config: DecoderConfig, dtype: Dtype, *, prefix: str, head_name: str, prune_layer: int, capacity: int, positions: int
) -> ir.Model:
    """The llm_upper graph.

    Args:
        prefix: of the decoder's parameters; a tied head is its ``embed_tokens.weight``.
        head_name: of an untied head, without ``.weight``.
        positions: the largest rotary position plus one (above capacity in mode ``keep``).
    """
    contract = llm_upper_contract(config, prune_layer, capacity, dtype)
    decoder = UpperLayers(config, prune_layer, dtype)
    decoder._set_name(prefix)
    head: nn.Module
    if config.tie_word_embeddings:
        head = TiedHead(config, dtype)
        head._set_name(prefix)
    else:
        head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        head._set_name(head_name)

    def forward(
        op: Op, hidden_states: ir.Value, last_row: ir.Value, position_ids: ir.Value, write_index: ir.Value, *caches: ir.Value
    ) -> list[ir.Value]:
        context = layer_context(
            op,
            config,
            dtype,
            rows_of=hidden_states,
            position_ids=position_ids,
            write_index=write_index,
            capacity=capacity,
            positions=positions,
        )
        x = op.Reshape(hidden_states, op.Constant(value_ints=[-1, config.hidden_size]))
        x, updated = decoder(op, x, last_row, context, list(caches))
        return [op.Cast(head(op, x), to=DTYPES["float32"]), *updated]

    return build_model(contract, forward)
