"""The inputs and outputs of the four graphs, written once.

The graphs, the manifest, the engine builders and the runtime all read these.  Symbolic dimensions:

    crops      images (or crops of images) encoded together
    batch      requests run together
    sequence   prompt rows of LLM-lower in prefill (text + K visual), 1 in decode
    visual     visual rows among them; 1 (a dummy row) in decode and for prompts without image
    survivors  sequence - visual + min(visual, K')
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sts_export.graphs.configs import DecoderConfig, Dtype, VisionConfig

# Stands in input_ids for a row of visual_embeds.  Not the image token's own id: a model may generate that one, and then
# it is a token like any other.
VISUAL_ROW = -1


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (integers and symbols) and dtype of one graph input or output."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        return cls(data["name"], tuple(data["shape"]), data["dtype"])


@dataclass(frozen=True)
class GraphContract:
    """Ordered inputs and outputs of one graph.

    ``caches`` pairs each KV-cache input with the output that must be bound to the same buffer.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caches: tuple[tuple[str, str], ...] = field(default=())

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "caches": [list(pair) for pair in self.caches],
        }

    @classmethod
    def from_json(cls, name: str, data: dict[str, Any]) -> GraphContract:
        return cls(
            name,
            tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            tuple(TensorSpec.from_json(item) for item in data["outputs"]),
            tuple((first, second) for first, second in data["caches"]),
        )


def vision_encoder_contract(vision: VisionConfig, dtype: Dtype, *, with_saliency: bool) -> GraphContract:
    """pixel_values -> visual_features, and CLS attention where the anchor needs it."""
    outputs = [TensorSpec("visual_features", ("crops", vision.num_tokens, vision.hidden_size), dtype)]
    if with_saliency:
        outputs.append(TensorSpec("cls_attention", ("crops", vision.num_tokens), "float32"))
    pixels = TensorSpec("pixel_values", ("crops", vision.num_channels, vision.image_size, vision.image_size), dtype)
    return GraphContract("vision_encoder", (pixels,), tuple(outputs))


def selector_contract(vision: VisionConfig, hidden_size: int, keep: int, dtype: Dtype, *, with_saliency: bool) -> GraphContract:
    """visual_features -> kept_index (ascending) and the projected embeddings of the kept rows."""
    encoder = vision_encoder_contract(vision, dtype, with_saliency=with_saliency)
    outputs = (
        TensorSpec("kept_index", ("crops", keep), "int64"),
        TensorSpec("visual_embeds", ("crops", keep, hidden_size), dtype),
    )
    return GraphContract("selector", encoder.outputs, outputs)


def _caches(layers: range, decoder: DecoderConfig, capacity: int, dtype: Dtype, suffix: str = "") -> list[TensorSpec]:
    shape = ("batch", decoder.num_kv_heads, capacity, decoder.head_dim)
    return [TensorSpec(f"{kind}_cache{suffix}.{layer}", shape, dtype) for layer in layers for kind in ("key", "value")]


def _with_caches(
    name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], caches: list[TensorSpec], updated: list[TensorSpec]
) -> GraphContract:
    pairs = tuple((before.name, after.name) for before, after in zip(caches, updated, strict=True))
    return GraphContract(name, tuple(inputs + caches), tuple(outputs + updated), pairs)


def llm_lower_contract(decoder: DecoderConfig, prune_layer: int, capacity: int, dtype: Dtype) -> GraphContract:
    """Decoder layers 0..L-1 and stage 2.

    Inputs:
        input_ids: [batch, sequence] int64; VISUAL_ROW (-1) where a row of visual_embeds stands
        attention_mask: [batch, sequence] int64; 1 for real tokens, 0 for padding (on the right)
        visual_embeds: [batch, visual, hidden]
        position_ids: [batch, sequence] int64; rotary positions
        write_index: [batch] int64; cache row that receives the first token of this call
        key_cache.i, value_cache.i: [batch, kv_heads, capacity, head_dim]
    Outputs:
        hidden_states: [batch, survivors, hidden]
        kept_rows: [batch, survivors] int64; ascending rows of this call that survive stage 2
        kept_position_ids: [batch, survivors] int64; their rotary positions
        last_row: [batch] int64; the survivor that is the last real token
    """
    inputs = [
        TensorSpec("input_ids", ("batch", "sequence"), "int64"),
        TensorSpec("attention_mask", ("batch", "sequence"), "int64"),
        TensorSpec("visual_embeds", ("batch", "visual", decoder.hidden_size), dtype),
        TensorSpec("position_ids", ("batch", "sequence"), "int64"),
        TensorSpec("write_index", ("batch",), "int64"),
    ]
    outputs = [
        TensorSpec("hidden_states", ("batch", "survivors", decoder.hidden_size), dtype),
        TensorSpec("kept_rows", ("batch", "survivors"), "int64"),
        TensorSpec("kept_position_ids", ("batch", "survivors"), "int64"),
        TensorSpec("last_row", ("batch",), "int64"),
    ]
    layers = range(prune_layer)
    caches = _caches(layers, decoder, capacity, dtype)
    return _with_caches("llm_lower", inputs, outputs, caches, _caches(layers, decoder, capacity, dtype, "_out"))


def llm_upper_contract(decoder: DecoderConfig, prune_layer: int, capacity: int, dtype: Dtype) -> GraphContract:
    """Decoder layers L..T-1, final norm and head.

    Inputs:
        hidden_states: [batch, survivors, hidden]
        last_row: [batch] int64; the row whose logits are wanted
        position_ids: [batch, survivors] int64; rotary positions
        write_index: [batch] int64; cache row that receives the first survivor
        key_cache.i, value_cache.i: [batch, kv_heads, capacity, head_dim]
    Outputs:
        logits: [batch, vocab] float32
    """
    inputs = [
        TensorSpec("hidden_states", ("batch", "survivors", decoder.hidden_size), dtype),
        TensorSpec("last_row", ("batch",), "int64"),
        TensorSpec("position_ids", ("batch", "survivors"), "int64"),
        TensorSpec("write_index", ("batch",), "int64"),
    ]
    outputs = [TensorSpec("logits", ("batch", decoder.vocab_size), "float32")]
    layers = range(prune_layer, decoder.num_layers)
    caches = _caches(layers, decoder, capacity, dtype)
    return _with_caches("llm_upper", inputs, outputs, caches, _caches(layers, decoder, capacity, dtype, "_out"))
