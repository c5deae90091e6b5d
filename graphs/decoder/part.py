"""The graph of one part of the decoder.

    first part:  input_ids, visual_embeds -> merged embeddings -> its layers -> stage 2 -> surviving rows
    a later one: hidden_states of the survivors -> its layers -> stage 2 -> surviving rows
    last part:   hidden_states of the survivors -> its layers -> norm and head of the last real row -> logits

One graph serves prefill and decode: in decode ``visual_embeds`` is one dummy row, no token is an image token, and every row
survives.  Checkpoint names (under the decoder's prefix): ``embed_tokens.weight``, ``layers.i`` and ``norm.weight``; and the
head's own, and ``image_newline``.
"""

from __future__ import annotations

import math
from collections.abc import Set

import onnx_ir as ir
from onnxscript import nn

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.decoder.contract import decoder_part_contract
from sts_export.graphs.decoder.embedding import Embedding, Newline, embed_prompt
from sts_export.graphs.decoder.layer import DecoderLayer, LayerContext, QueryKey, layer_context
from sts_export.graphs.decoder.parts import DecoderPart
from sts_export.graphs.decoder.visual_rows import VisualRows, kept_visual_rows, of_prompt, of_survivors, text_rows
from sts_export.graphs.layers import DTYPES, Linear, Op, RMSNorm
from sts_export.graphs.model import build_model
from sts_export.graphs.needs import FINAL_HIDDEN, NEXT_QUERY_KEY, SEED, TEXT_ROWS
from sts_export.graphs.sizes import rows_of_part
from sts_export.graphs.stages import Stage2Builder, Stage2Inputs


class Layers(nn.Module):
    """Successive layers under their own numbers, and behind them the scoring projections of the next one if asked for."""

    def __init__(self, config: DecoderConfig, part: DecoderPart, dtype: Dtype, *, score_next: bool) -> None:
        super().__init__()
        for index in part.layers:
            setattr(self, str(index), DecoderLayer(config, dtype))
        if score_next:
            setattr(self, str(part.end), QueryKey(config, dtype))

    def forward(
        self, op: Op, x: ir.Value, context: LayerContext, caches: list[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value], ir.Value, ir.Value]:
        """Returns hidden states [batch * rows, width], updated caches, and the scoring query and key."""
        updated: list[ir.Value] = []
        query = key = x
        for index, layer in enumerate(self.children()):
            if isinstance(layer, QueryKey):
                query, key = layer(op, x, context)
            else:
                x, key_cache, value_cache, query, key = layer(op, x, caches[2 * index], caches[2 * index + 1], context)
                updated += [key_cache, value_cache]
        return x, updated, query, key


class PartLayers(nn.Module):
    """What lies under the decoder's prefix: embedding, layers, norm, as far as they belong to the part."""

    def __init__(self, config: DecoderConfig, part: DecoderPart, dtype: Dtype, *, prefix: str, needs: Set[str]) -> None:
        super().__init__(prefix)
        self.embed_tokens = Embedding(config, dtype) if part.is_first else None
        self.layers = Layers(config, part, dtype, score_next=NEXT_QUERY_KEY in needs)
        with_norm = part.is_last or FINAL_HIDDEN in needs
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype) if with_norm else None
        # Nodes are named layers.i/... in the first part and layers/i/... in the others: graphs stay those of earlier exports.
        self.flat = part.is_first
        if self.flat:
            for index, layer in self.layers.named_children():
                layer._set_name(f"layers.{index}")

    def forward(
        self,
        op: Op,
        x: ir.Value,
        visual: VisualRows | None,
        newline: ir.Value | None,
        last_row: ir.Value | None,
        context: LayerContext,
        caches: list[ir.Value],
    ) -> tuple[ir.Value, list[ir.Value], ir.Value, ir.Value]:
        """Ids [batch, rows] or hidden states [batch * rows, width] -> what :class:`Layers` returns.

        Of the last part (``last_row`` is given) the first of these is the normed last row, [batch, width].
        """
        if self.embed_tokens is not None and visual is not None:
            x = embed_prompt(op, self.embed_tokens, x, visual, newline)
        run_layers = self.layers.forward if self.flat else self.layers
        x, updated, query, key = run_layers(op, x, context, caches)
        if self.norm is not None and last_row is not None:
            width = int(self.norm.weight.shape[0])
            rows = op.Reshape(x, op.Concat(context.batch_rows, op.Constant(value_ints=[width]), axis=0))
            x = self.norm(op, op.GatherND(rows, op.Unsqueeze(last_row, op.Constant(value_ints=[1])), batch_dims=1))
        return x, updated, query, key

    def normed(self, op: Op, x: ir.Value) -> ir.Value:
        """Hidden states of any rows after the final norm."""
        assert self.norm is not None
        return self.norm(op, x)


class TiedHead(nn.Module):
    """The head of a model that shares the embedding matrix.  weight: [vocab, width]."""

    def __init__(self, config: DecoderConfig, dtype: Dtype, *, prefix: str) -> None:
        super().__init__(prefix)
        self.embed_tokens = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.embed_tokens(op, x)


def _head(config: DecoderConfig, dtype: Dtype, *, prefix: str, head_name: str) -> nn.Module:
    if config.tie_word_embeddings:
        return TiedHead(config, dtype, prefix=prefix)
    head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
    head._set_name(head_name)
    return head


def decoder_part(
    config: DecoderConfig,
    part: DecoderPart,
    dtype: Dtype,
    *,
    prefix: str,
    head_name: str,
    capacity: int,
    positions: int,
    stage2: Stage2Builder,
    needs: Set[str] = frozenset(),
    with_newline: bool = False,
) -> ir.Model:
    """The graph of a part.

    Args:
        prefix: parameters are named ``prefix`` + Llama's own names; a tied head is its ``embed_tokens.weight``.
        head_name: of an untied head, without ``.weight``.
        capacity: rows of the KV caches.
        positions: the largest rotary position plus one (above capacity where positions are kept).
        stage2: adds the nodes that choose the surviving rows; not called for the last part.
        needs: of stage 2 (``graphs.needs``).
        with_newline: the family has a learned newline row, ``image_newline``.
    """
    if part.is_last:
        needs = frozenset()
    if TEXT_ROWS in needs and not part.is_first:
        raise ValueError(f"{part.name} is not told which of its rows are text")
    contract = decoder_part_contract(config, part, capacity, dtype, needs)
    decoder = PartLayers(config, part, dtype, prefix=prefix, needs=needs)
    newline = Newline(config, dtype) if with_newline and part.is_first else None
    head = _head(config, dtype, prefix=prefix, head_name=head_name) if part.is_last else None

    def forward(op: Op, *values: ir.Value) -> list[ir.Value]:
        given = {spec.name: value for spec, value in zip(contract.inputs, values, strict=True)}
        caches = [given[name] for name, _ in contract.caches]
        x = values[0]  # ids, or hidden states
        context = layer_context(
            op,
            config,
            dtype,
            rows_of=x,
            position_ids=given["position_ids"],
            write_index=given["write_index"],
            capacity=capacity,
            positions=positions,
        )
        visual = None
        if part.is_first:
            visual = of_prompt(op, x, given["attention_mask"], given["visual_embeds"])
        else:
            if not part.is_last:
                visual = of_survivors(op, x, given["entering_last_row"], given["visual_rows"])
            x = op.Reshape(x, op.Constant(value_ints=[-1, config.hidden_size]))
        learned = None if newline is None else newline(op)
        x, updated, query, key = decoder(op, x, visual, learned, given.get("last_row"), context, caches)
        if head is not None:
            return [op.Cast(head(op, x), to=DTYPES["float32"]), *updated]
        assert visual is not None
        slots = given["stage2_slots"]
        scale = 1 / math.sqrt(config.head_dim)
        rows = op.Reshape(x, op.Concat(context.batch_rows, op.Constant(value_ints=[config.hidden_size]), axis=0))
        inputs = Stage2Inputs(
            query,
            key,
            visual.valid,
            visual.mask,
            visual.states,
            slots,
            scale,
            text_rows=text_rows(op, given["input_ids"], visual.valid) if TEXT_ROWS in needs else None,
            final_hidden=decoder.normed(op, rows) if FINAL_HIDDEN in needs else None,
            seed=given[SEED] if SEED in needs else None,
        )
        kept_rows, last_row = stage2(op, inputs)
        survivors = rows_of_part(part.index + 1)
        kept_rows.type, kept_rows.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["batch", survivors])
        hidden = op.GatherND(rows, op.Unsqueeze(kept_rows, op.Constant(value_ints=[2])), batch_dims=1)
        kept_positions = _kept_positions(op, config, given["position_ids"], kept_rows)
        passed_on = [kept_visual_rows(op, visual.mask, kept_rows, slots)] if part.next_drops else []
        return [hidden, kept_rows, kept_positions, last_row, *passed_on, *updated]

    return build_model(contract, forward)


def _kept_positions(op: Op, config: DecoderConfig, position_ids: ir.Value, kept_rows: ir.Value) -> ir.Value:
    """Of the survivors: [batch, survivors], or [batch, 3, survivors] with M-RoPE."""
    if not config.mrope_section:
        return op.GatherElements(position_ids, kept_rows, axis=1)
    by_row = op.Transpose(position_ids, perm=[0, 2, 1])
    kept = op.GatherND(by_row, op.Unsqueeze(kept_rows, op.Constant(value_ints=[2])), batch_dims=1)
    return op.Transpose(kept, perm=[0, 2, 1])
