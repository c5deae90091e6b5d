"""Name and shape of every tensor of a public checkpoint, from its config alone.

tests/families/test_public_checkpoints.py compares them with transformers. That Qwen2.5-VL-3B has no lm_head.weight follows
from its tied head; its file list was not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

from sts_export.testing.public_models.configs import PUBLIC_MODELS, Json

Shape = tuple[int, ...]


def tensor_shapes(name: str) -> dict[str, Shape]:
    """Names and shapes of all tensors of a public checkpoint, by its hub id."""
    config = PUBLIC_MODELS[name].config
    return dict(_qwen_tensors(config) if config["model_type"] == "qwen2_5_vl" else _llava_tensors(config))


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _decoder_tensors(prefix: str, text: Json, qkv_bias: bool) -> Iterator[tuple[str, Shape]]:
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    mlp, key_width = text.get("intermediate_size", 11008), width // heads * text.get("num_key_value_heads", heads)
    yield f"{prefix}.embed_tokens.weight", (text["vocab_size"], width)
    for index in range(text.get("num_hidden_layers", 32)):
        layer = f"{prefix}.layers.{index}"
        for part, size in (("q_proj", width), ("k_proj", key_width), ("v_proj", key_width)):
            yield from _linear(f"{layer}.self_attn.{part}", size, width, qkv_bias)
        yield from _linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        for part in ("gate_proj", "up_proj"):
            yield from _linear(f"{layer}.mlp.{part}", mlp, width, bias=False)
        yield from _linear(f"{layer}.mlp.down_proj", width, mlp, bias=False)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield f"{prefix}.norm.weight", (width,)


def _llava_tensors(config: Json) -> Iterator[tuple[str, Shape]]:
    text, vision = config["text_config"], config["vision_config"]
    width, decoder_width = vision["hidden_size"], text.get("hidden_size", 4096)
    tower = "vision_tower.vision_model"
    patch = vision["patch_size"]
    yield f"{tower}.embeddings.class_embedding", (width,)
    yield f"{tower}.embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield f"{tower}.embeddings.position_embedding.weight", ((vision["image_size"] // patch) ** 2 + 1, width)
    yield from _norm(f"{tower}.pre_layrnorm", width)
    for index in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _linear(f"{layer}.mlp.fc1", vision["intermediate_size"], width)
        yield from _linear(f"{layer}.mlp.fc2", width, vision["intermediate_size"])
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm(f"{tower}.post_layernorm", width)
    yield from _linear("multi_modal_projector.linear_1", decoder_width, width)
    yield from _linear("multi_modal_projector.linear_2", decoder_width, decoder_width)
    if config["model_type"] == "llava_next":
        yield "image_newline", (decoder_width,)
    yield from _decoder_tensors("language_model.model", text, qkv_bias=False)
    yield "language_model.lm_head.weight", (text["vocab_size"], decoder_width)


def _qwen_tensors(config: Json) -> Iterator[tuple[str, Shape]]:
    vision = config["vision_config"]
    width, mlp, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    yield "visual.patch_embed.proj.weight", (width, vision["in_chans"], vision["temporal_patch_size"], patch, patch)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        yield f"{block}.norm1.weight", (width,)
        yield f"{block}.norm2.weight", (width,)
        yield from _linear(f"{block}.attn.qkv", 3 * width, width)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _linear(f"{block}.mlp.gate_proj", mlp, width)
        yield from _linear(f"{block}.mlp.up_proj", mlp, width)
        yield from _linear(f"{block}.mlp.down_proj", width, mlp)
    merged = width * vision["spatial_merge_size"] ** 2
    yield "visual.merger.ln_q.weight", (width,)
    yield from _linear("visual.merger.mlp.0", merged, merged)
    yield from _linear("visual.merger.mlp.2", vision["out_hidden_size"], merged)
    yield from _decoder_tensors("model", config, qkv_bias=True)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], config["hidden_size"])
