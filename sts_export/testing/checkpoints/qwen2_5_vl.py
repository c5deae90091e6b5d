"""Random-weight Qwen2.5-VL checkpoints.

Names of the weights on disk (``layout``):

- ``5.x``: ``model.layers.0…``, ``model.embed_tokens.weight``, ``model.norm.weight``, ``lm_head.weight``, ``visual.blocks.0…``,
  ``visual.patch_embed.proj.weight``, ``visual.merger…``: transformers 5.23 save_pretrained; the same as on the hub.
- ``4.x``: these names with the hub's config.json (decoder settings at the top level), processor and tokenizer files.
- ``memory-4.52``: ``model.language_model.layers…``, ``model.visual.blocks…``, ``lm_head.weight``: a state dict since 4.52.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from sts_export.testing.checkpoints.files import random_weight, randomize, read_json, rename_tensors, write_json
from sts_export.testing.checkpoints.tokenizers import byte_level_vocabulary

QwenLayout = Literal["5.x", "4.x", "memory-4.52"]

# In the order of their ids on the hub (151643 …), which follow the vocabulary.
QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# chat_template.json of Qwen/Qwen2.5-VL-7B-Instruct.
QWEN_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class RandomQwen25VL:
    """A Qwen2.5-VL architecture and its seed.

    The defaults give 30 to 80 visual tokens, several attention windows of different sizes and grouped-query attention. As in
    Qwen, the embedding has rows that no token uses.

    Args:
        window_size: side of the vision tower's attention windows, in pixels.
        mrope_section: frequencies that follow the temporal, vertical and horizontal position; their sum is head_dim / 2.
        min_pixels, max_pixels: bounds between which the processor scales pictures.
    """

    seed: int = 0
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    vision_layers: int = 4
    fullatt_block_indexes: tuple[int, ...] = (1, 3)
    vision_width: int = 32
    vision_heads: int = 2
    vision_mlp: int = 52
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    mrope_section: tuple[int, int, int] = (2, 3, 3)
    mlp: int = 96
    vocab_size: int = 384
    max_positions: int = 2048
    rope_theta: float = 1000000.0
    tied_embeddings: bool = False
    min_pixels: int = 30 * 28 * 28
    max_pixels: int = 80 * 28 * 28
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    max_shard_size: str = "5GB"
    layout: QwenLayout = "5.x"

    def __post_init__(self) -> None:
        if 2 * sum(self.mrope_section) != self.head_dim or (self.vision_width // self.vision_heads) % 4:
            raise ValueError("mrope_section must sum to head_dim / 2, and the vision head_dim must divide by 4")

    @property
    def width(self) -> int:
        """Of the decoder: transformers takes no head_dim for this family."""
        return self.heads * self.head_dim

    def token(self, name: str) -> int:
        """Id of a special token; they follow the vocabulary, and unused rows follow them."""
        return len(_vocabulary(self)[0]) + QWEN_SPECIAL_TOKENS.index(name)


def write_random_qwen2_5_vl(folder: str | Path, spec: RandomQwen25VL | None = None) -> Path:
    """Write the checkpoint with tokenizer and image processor; the same spec always gives the same weights."""
    spec = RandomQwen25VL() if spec is None else spec
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    model = Qwen2_5_VLForConditionalGeneration(_config(spec))
    tied_width = spec.width if spec.tied_embeddings else None
    randomize(model, lambda name, shape: random_weight(name, shape, seed=spec.seed, tied_width=tied_width))
    end = spec.token("<|endoftext|>")
    # The hub's has do_sample, temperature and repetition_penalty, too; tests want plain greedy decoding by default.
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=[spec.token("<|im_end|>"), end], pad_token_id=end)
    model.to(getattr(torch, spec.dtype)).save_pretrained(path, max_shard_size=spec.max_shard_size)
    if spec.layout == "memory-4.52":
        rename_tensors(path, ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.", "visual."), _memory_name)
    _write_processor(spec, path)
    if spec.layout == "4.x":
        _write_old_json(spec, path)
    return path


def _memory_name(name: str) -> str:
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1)  # lm_head has none


def _config(spec: RandomQwen25VL) -> Qwen2_5_VLConfig:
    text = {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "max_window_layers": spec.layers,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": spec.rope_theta,
            "mrope_section": list(spec.mrope_section),
        },
        "bos_token_id": spec.token("<|endoftext|>"),
        "eos_token_id": spec.token("<|im_end|>"),
    }
    vision = {
        "depth": spec.vision_layers,
        "hidden_size": spec.vision_width,
        "intermediate_size": spec.vision_mlp,
        "num_heads": spec.vision_heads,
        "out_hidden_size": spec.width,
        "patch_size": spec.patch_size,
        "spatial_merge_size": spec.merge_size,
        "temporal_patch_size": spec.temporal_patch_size,
        "window_size": spec.window_size,
        "fullatt_block_indexes": list(spec.fullatt_block_indexes),
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=spec.token("<|image_pad|>"),
        video_token_id=spec.token("<|video_pad|>"),
        vision_start_token_id=spec.token("<|vision_start|>"),
        vision_end_token_id=spec.token("<|vision_end|>"),
        tie_word_embeddings=spec.tied_embeddings,
    )


def _vocabulary(spec: RandomQwen25VL) -> tuple[dict[str, int], list[tuple[str, str]]]:
    return byte_level_vocabulary(spec.vocab_size - 16)


def qwen_tokenizer(spec: RandomQwen25VL) -> Qwen2Tokenizer:
    vocabulary, merges = _vocabulary(spec)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, unk_token=None, eos_token=None, pad_token=None, model_max_length=131072
    )
    # Roles after ids: a token gets its id when it is first named.
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIAL_TOKENS)})
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def _write_processor(spec: RandomQwen25VL, path: Path) -> None:
    """As Qwen2_5_VLProcessor.save_pretrained of 5.23 does, which wants torchvision for its video processor."""
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        patch_size=spec.patch_size,
        temporal_patch_size=spec.temporal_patch_size,
        merge_size=spec.merge_size,
    )
    processor: dict[str, Any] = {"image_processor": images.to_dict(), "processor_class": "Qwen2_5_VLProcessor"}
    write_json(path / "processor_config.json", processor)
    qwen_tokenizer(spec).save_pretrained(path)
    (path / "chat_template.jinja").write_text(QWEN_CHAT_TEMPLATE)


def _write_old_json(spec: RandomQwen25VL, path: Path) -> None:
    """config.json, preprocessor, tokenizer and chat template files as on the hub."""
    config = read_json(path / "config.json")
    text, vision = config.pop("text_config"), config.pop("vision_config")
    dtype = config.pop("dtype")
    for added_in_5 in ("model_type", "layer_types", "rope_parameters", "pad_token_id", "dtype", "sliding_window"):
        text.pop(added_in_5, None)
    config.update(text)
    config.update(
        torch_dtype=dtype,
        transformers_version="4.41.2",
        tie_word_embeddings=spec.tied_embeddings,
        sliding_window=32768,  # not in force: use_sliding_window is false
        rope_theta=spec.rope_theta,
        rope_scaling={"type": "mrope", "mrope_section": list(spec.mrope_section)},
        vision_token_id=spec.token("<|vision_pad|>"),
    )
    keep = set(vision) - {"model_type", "in_channels", "initializer_range", "rope_parameters", "dtype"}
    config["vision_config"] = {name: vision[name] for name in keep} | {"in_chans": 3, "spatial_patch_size": spec.patch_size}
    write_json(path / "config.json", config)

    images = read_json(path / "processor_config.json")["image_processor"]
    kept = ("image_mean", "image_std", "merge_size", "patch_size", "temporal_patch_size")
    preprocessor = {name: images[name] for name in kept} | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": spec.min_pixels,
        "max_pixels": spec.max_pixels,
    }
    write_json(path / "preprocessor_config.json", preprocessor)
    (path / "processor_config.json").unlink()
    (path / "chat_template.jinja").unlink()
    write_json(path / "chat_template.json", {"chat_template": QWEN_CHAT_TEMPLATE})
    tokenizer = read_json(path / "tokenizer_config.json")
    tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    del tokenizer["backend"]
    write_json(path / "tokenizer_config.json", {**tokenizer, "chat_template": QWEN_CHAT_TEMPLATE})
