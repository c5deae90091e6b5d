"""What LLaVA-1.5 and LLaVA-NeXT share: a CLIP tower, a Llama-like decoder, their names on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPVisionConfig, GenerationConfig

from sts_export.testing.checkpoints.files import random_weight, randomize, rename_tensors

# See sts_export/testing/checkpoints/llava.py.
Layout = Literal["5.x", "4.x", "memory-4.52", "memory-5.x", "flat"]


@dataclass(frozen=True)
class ClipLlama:
    """Sizes and seed; the defaults have 36 visual tokens a tile and grouped-query attention."""

    seed: int = 0
    image_size: int = 84
    patch_size: int = 14
    vision_layers: int = 3
    vision_width: int = 32
    vision_heads: int = 4
    vision_mlp: int = 64
    vision_feature_layer: int = -2
    layers: int = 4
    width: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    mlp: int = 96
    vocab_size: int = 384
    max_positions: int = 2048
    rope_theta: float = 10000.0
    tied_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    max_shard_size: str = "5GB"
    layout: Layout = "5.x"

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of one tile (crop)."""
        return (self.image_size // self.patch_size) ** 2


def vision_config(spec: ClipLlama) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=spec.vision_width,
        intermediate_size=spec.vision_mlp,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
    )


def decoder_settings(spec: ClipLlama) -> dict[str, Any]:
    """What LlamaConfig and MistralConfig both take."""
    return {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": spec.tied_embeddings,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }


def save_model(model: Any, spec: ClipLlama, path: Path) -> None:
    """Random weights into the model, model into the folder, with the names of the layout."""
    tied_width = spec.width if spec.tied_embeddings else None
    randomize(model, lambda name, shape: random_weight(name, shape, seed=spec.seed, tied_width=tied_width))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    model.to(getattr(torch, spec.dtype)).save_pretrained(path, max_shard_size=spec.max_shard_size)
    expected = ("language_model.model.", "language_model.lm_head.", "multi_modal_projector.", "vision_tower.", "image_newline")
    if spec.layout != "5.x":
        rename_tensors(path, expected, lambda name: renamed(name, spec.layout))


def renamed(name: str, layout: Layout) -> str:
    """A name of the layout ``5.x`` in another one."""
    if layout in ("4.x", "memory-4.52"):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if layout == "flat":
        return name.replace("language_model.model.", "language_model.", 1)
    if not layout.startswith("memory"):
        return name
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.", 1)
