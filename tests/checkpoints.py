"""Random-weight LLaVA-1.5 checkpoints in Hugging Face format, random pictures and prompts: everything from a seed.

Weights are drawn so that a mistake shows: attention rows and logits vary strongly, norms are not 1, biases are not 0.

Names of the weights on disk (``layout``), with the release that writes them:

- ``5.x``: ``language_model.model.layers.0…``, ``language_model.lm_head.weight``, ``vision_tower.encoder.layers.0…``,
  ``multi_modal_projector.linear_1…``: transformers 5.23 save_pretrained of a new model.
- ``4.x``: the same with ``vision_tower.vision_model.encoder…``: save_pretrained of 4.x, the checkpoints on the hub, and what
  5.23 writes again after loading one. Also writes config.json and the processor files as those releases did.
- ``memory-4.52``: ``model.language_model.layers…``, ``lm_head.weight``, ``model.vision_tower.vision_model.encoder…``,
  ``model.multi_modal_projector…``: a plain state dict since 4.52 (trainers write it).
- ``memory-5.x``: the same with ``model.vision_tower.encoder…``: a plain state dict of 5.23.
- ``flat``: ``5.x`` with ``language_model.layers…`` for ``language_model.model.layers…``; transformers reads it, and writes it
  again after loading it.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

Layout = Literal["5.x", "4.x", "memory-4.52", "memory-5.x", "flat"]

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
IMAGE_TOKEN = SPECIAL_TOKENS.index("<image>")
# Every prefix of these words is a token, so that byte-pair merging has something to do.
WORDS = ["the", "USER", "ASSISTANT", "What", "Where", "is", "on", "in", "of", "table", "picture", "cat", "How", "Describe"]

# The template of llava-hf/llava-1.5-7b-hf.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class RandomLlava:
    """A LLaVA-1.5 architecture and its seed; the defaults have 36 visual tokens and grouped-query attention."""

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
    def num_visual_tokens(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


def write_random_llava(folder: str | Path, spec: RandomLlava | None = None) -> Path:
    """Write the checkpoint with tokenizer and processor; the same spec always gives the same weights."""
    spec = RandomLlava() if spec is None else spec
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    model = LlavaForConditionalGeneration(_config(spec))
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.data = _random_weight(name, parameter.shape, spec)
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    model.to(getattr(torch, spec.dtype)).save_pretrained(path, max_shard_size=spec.max_shard_size)
    _rename(path, spec.layout)
    _processor(spec).save_pretrained(path)
    if spec.layout == "4.x":
        _write_old_json(path)
    return path


def random_image(seed: int, size: tuple[int, int] = (120, 100)) -> Image.Image:
    """RGB picture of the given (width, height): a gradient, filled rectangles and ellipses, a little noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    corners = rng.uniform(0, 255, (3, 3))
    pixels = corners[0] + x[..., None] * (corners[1] - corners[0]) + y[..., None] * (corners[2] - corners[0])
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(picture)
    for index in range(6):
        left, top = rng.uniform(0, 0.8, 2) * size
        right, bottom = np.minimum((left, top) + rng.uniform(0.1, 0.4, 2) * size, size)
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((float(left), float(top), float(right), float(bottom)), fill=tuple(map(int, rng.integers(0, 256, 3))))
    noisy = np.asarray(picture).astype(np.float64) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), "RGB")


def random_prompt(seed: int) -> str:
    """A short question; some have punctuation, digits or letters beyond ASCII."""
    rng = random.Random(seed)
    start = rng.choice(["What is on the", "Where is the", "How many", "Describe this", "Was zählt man hier:"])
    middle = " ".join(rng.choices(["table", "picture", "cat", "red square", "colour of 3 cups", "«été»"], k=rng.randint(1, 4)))
    return f"{start} {middle}{rng.choice('?.!')}"


def _config(spec: RandomLlava) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=spec.vision_width,
        intermediate_size=spec.vision_mlp,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
    )
    text = LlamaConfig(
        hidden_size=spec.width,
        intermediate_size=spec.mlp,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        max_position_embeddings=spec.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        rms_norm_eps=1e-5,
        attention_bias=spec.attention_bias,
        mlp_bias=spec.mlp_bias,
        tie_word_embeddings=spec.tied_embeddings,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=spec.num_visual_tokens,
        vision_feature_layer=spec.vision_feature_layer,
        tie_word_embeddings=spec.tied_embeddings,
    )


def _random_weight(name: str, shape: torch.Size, spec: RandomLlava) -> torch.Tensor:
    """Each weight has its own generator, so that it does not depend on the order of the modules."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{spec.seed} {name}".encode()))
    noise: torch.Tensor = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.2 * noise
    if "norm" in name or "layrnorm" in name:
        return 1 + 0.25 * noise
    if "embed_tokens" in name:
        return noise / math.sqrt(spec.width) if spec.tied_embeddings else 0.5 * noise
    if "class_embedding" in name or "position_embedding" in name:
        return noise
    gain: float = 2.5 if "lm_head" in name else 1.6 if "q_proj" in name or "k_proj" in name else 1.2
    return noise * (gain / math.sqrt(noise[0].numel()))


def _rename(path: Path, layout: Layout) -> None:
    """Rewrite the saved files with another layout's names."""

    def renamed(name: str) -> str:
        if layout in ("4.x", "memory-4.52"):
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        if layout == "flat":
            return name.replace("language_model.model.", "language_model.", 1)
        if not layout.startswith("memory"):
            return name
        if name.startswith("language_model.lm_head."):
            return name.removeprefix("language_model.")
        return "model." + name.replace("language_model.model.", "language_model.", 1)

    for file in sorted(path.glob("*.safetensors")):
        tensors = load_file(file)
        expected = (
            "language_model.model.",
            "language_model.lm_head.",
            "multi_modal_projector.",
            "vision_tower.e",
            "vision_tower.p",
        )
        if not all(name.startswith(expected) for name in tensors):
            raise AssertionError(f"transformers writes new names, describe them here: {sorted(tensors)[:3]}")
        save_file({renamed(name): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    index = path / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {renamed(name): file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2) + "\n")


def _processor(spec: RandomLlava) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(prefix + word for word in WORDS for prefix in ("", "Ġ")):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary and len(vocabulary) < spec.vocab_size:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": spec.image_size}, crop_size={"height": spec.image_size, "width": spec.image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=fast,
        patch_size=spec.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _write_old_json(path: Path) -> None:
    """config.json, preprocessor, processor, tokenizer and chat template files as 4.x releases wrote them."""

    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((path / name).read_text())
        return content

    def write(name: str, content: dict[str, Any]) -> None:
        (path / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    config = read("config.json")
    config.update(torch_dtype=config.pop("dtype"), transformers_version="4.46.0", ignore_index=-100)
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"].update(rope_theta=rope["rope_theta"], rope_scaling=None)
    write("config.json", config)
    processor = read("processor_config.json")
    write("preprocessor_config.json", {**processor.pop("image_processor"), "processor_class": "LlavaProcessor"})
    write("processor_config.json", processor)
    write("chat_template.json", {"chat_template": (path / "chat_template.jinja").read_text()})
    (path / "chat_template.jinja").unlink()
    write("tokenizer_config.json", {**read("tokenizer_config.json"), "tokenizer_class": "PreTrainedTokenizerFast"})
