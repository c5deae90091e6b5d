"""The inputs and outputs of the decoder's parts, written once: an input is named here and in the graph, nowhere else."""

from __future__ import annotations

from collections.abc import Set

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.decoder.parts import DecoderPart
from sts_export.graphs.needs import SEED
from sts_export.graphs.sizes import rows_of_part, visual_of_part


def decoder_part_contract(
    decoder: DecoderConfig, part: DecoderPart, capacity: int, dtype: Dtype, needs: Set[str] = frozenset()
) -> GraphContract:
    """One part of the decoder.  Sizes as for the first of two parts; later ones have names of their own (``sizes``).

    Args:
        capacity: rows of its KV caches.
        needs: of the stage behind it (``graphs.needs``).

    Inputs of the first part:
        input_ids: [batch, sequence] int64; VISUAL_ROW (-1) where a row of visual_embeds stands, NEWLINE_ROW (-2) where the
            learned newline does
        attention_mask: [batch, sequence] int64; 1 for real tokens, 0 for padding (on the right)
        visual_embeds: [batch, visual, hidden]
    Inputs of every other part, from the part before:
        hidden_states: [batch, sequence, hidden]
        last_row: [batch] int64; the row that is the last real token
    Where it is not the last part these are entering_hidden_states and entering_last_row, and there is
        visual_rows: [batch, visual] int64, ascending; the rows that are visual
    Inputs of all parts:
        stage2_slots: [visual_keep] int64; only its length is read, K': so that shapes alone tell engines the output sizes
            (not of the last part)
        seed: [batch] int64, if it is one of ``needs``; the request's
        position_ids: [batch, sequence] or, with M-RoPE, [batch, 3, sequence] int64; rotary positions
        write_index: [batch] int64; cache row that receives the first row of this call
        key_cache.i, value_cache.i: [batch, kv_heads, capacity, head_dim]

    Outputs of the last part:
        logits: [batch, vocab] float32
    Outputs of every other part:
        hidden_states: [batch, survivors, hidden]
        kept_rows: [batch, survivors] int64; ascending rows of this call that survive stage 2
        kept_position_ids: [batch, survivors] or [batch, 3, survivors] int64; their rotary positions
        last_row: [batch] int64; the survivor that is the last real token
        kept_visual_rows: [batch, visual_keep] int64, ascending; the survivors that are visual (only for a part that drops
            some).  Without visual rows the first survivor stands in: one row of which one is kept, so that nothing is dropped
    """
    rows, visual = rows_of_part(part.index), visual_of_part(part.index)
    if part.is_first:
        inputs = [
            TensorSpec("input_ids", ("batch", rows), "int64"),
            TensorSpec("attention_mask", ("batch", rows), "int64"),
            TensorSpec("visual_embeds", ("batch", visual, decoder.hidden_size), dtype),
        ]
    elif part.is_last:
        inputs = _states(decoder, rows, dtype)
    else:
        inputs = [*_states(decoder, rows, dtype, "entering_"), TensorSpec("visual_rows", ("batch", visual), "int64")]
    if part.is_last:
        outputs = [TensorSpec("logits", ("batch", decoder.vocab_size), "float32")]
    else:
        survivors, visual_keep = rows_of_part(part.index + 1), visual_of_part(part.index + 1)
        inputs.append(TensorSpec("stage2_slots", (visual_keep,), "int64"))
        if SEED in needs:
            inputs.append(TensorSpec(SEED, ("batch",), "int64"))
        hidden_states, last_row = _states(decoder, survivors, dtype)
        outputs = [
            hidden_states,
            TensorSpec("kept_rows", ("batch", survivors), "int64"),
            TensorSpec("kept_position_ids", _positions(decoder, survivors), "int64"),
            last_row,
        ]
        if part.next_drops:
            outputs.append(TensorSpec("kept_visual_rows", ("batch", visual_keep), "int64"))
    inputs.append(TensorSpec("position_ids", _positions(decoder, rows), "int64"))
    inputs.append(TensorSpec("write_index", ("batch",), "int64"))
    before, after = (_caches(part, decoder, capacity, dtype, suffix) for suffix in ("", "_out"))
    pairs = tuple((spec.name, updated.name) for spec, updated in zip(before, after, strict=True))
    return GraphContract(part.name, (*inputs, *before), (*outputs, *after), pairs)


def _states(decoder: DecoderConfig, rows: str, dtype: Dtype, prefix: str = "") -> list[TensorSpec]:
    """What goes from part to part."""
    return [
        TensorSpec(f"{prefix}hidden_states", ("batch", rows, decoder.hidden_size), dtype),
        TensorSpec(f"{prefix}last_row", ("batch",), "int64"),
    ]


def _positions(decoder: DecoderConfig, rows: str) -> tuple[int | str, ...]:
    """Shape of rotary positions: one a row, or time, height and width."""
    return ("batch", len(decoder.mrope_section), rows) if decoder.mrope_section else ("batch", rows)


def _caches(part: DecoderPart, decoder: DecoderConfig, capacity: int, dtype: Dtype, suffix: str) -> list[TensorSpec]:
    shape = ("batch", decoder.num_kv_heads, capacity, decoder.head_dim)
    return [TensorSpec(f"{kind}_cache{suffix}.{layer}", shape, dtype) for layer in part.layers for kind in ("key", "value")]
