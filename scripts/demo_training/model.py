"""Tokenizer and model of the demo: LLaVA-1.5's architecture, only small."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.modeling_clip import CLIPAttention

from scripts.demo_training.labels import GRID, PATCH
from scripts.demo_training.practice import ECHOES
from sts_export.demo.questions import ask, ask_both
from sts_export.demo.world import COLORS, IMAGE_SIZE, SHAPES, WORDS, sample_scene
from sts_export.exporting.staging import staging

UNK, BOS, EOS, PAD, IMAGE = "<unk>", "<s>", "</s>", "<pad>", "<image>"
QUESTION = "\n{} ASSISTANT:"
ANSWER = " {}"
# The template of the llava-hf/llava-1.5 checkpoints, without their per-message loops over other modalities.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Layer 9 of the tower is never used: features are those before the last layer, as in LLaVA.
VISION_WIDTH, VISION_LAYERS, VISION_HEADS, VISION_MLP = 160, 9, 5, 480
# Where each head of the first vision layers looks before training, in patches (rows, columns).
NEIGHBOURS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
    ((0, -3), (0, 3), (-1, 0), (1, 0)),
)
FOCUS = 2.2
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, TEXT_MLP = 160, 12, 5, 288


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's questions and answers; every name and every word that can be read is one token."""
    names = [*SHAPES, *COLORS, *WORDS]

    def corpus() -> Iterator[str]:
        for seed in range(3000):
            rng, scene = np.random.default_rng(seed), sample_scene(seed)
            for question in [*ask(scene, rng), *ask_both((scene, sample_scene(seed + 1)), rng)]:
                yield "USER: " + QUESTION.format(question.text) + ANSWER.format(question.answer)
        for form in ECHOES:
            yield from (form.format(name) for name in names for _ in range(20))

    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=[UNK, BOS, EOS, PAD, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    for name in names:
        assert len(fast(" " + name, add_special_tokens=False)["input_ids"]) == 1, name
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """A fresh model."""
    torch.manual_seed(seed)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (BOS, EOS, PAD, IMAGE)}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=VISION_MLP,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=VISION_HEADS,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            projection_dim=VISION_WIDTH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_MLP,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            num_key_value_heads=TEXT_HEADS,
            max_position_embeddings=2048,
            initializer_range=0.04,
            bos_token_id=ids[BOS],
            eos_token_id=ids[EOS],
            pad_token_id=ids[PAD],
        ),
        image_token_index=ids[IMAGE],
        image_seq_length=GRID * GRID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        position = model.model.vision_tower.embeddings.position_embedding.weight
        position[1:] = sine_grid(VISION_WIDTH)
        model.model.vision_tower.embeddings.patch_embedding.weight.mul_(2)
        for layer, offsets in zip(model.model.vision_tower.encoder.layers, NEIGHBOURS, strict=False):
            look_at_neighbours(layer.self_attn, offsets)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[PAD], do_sample=False, max_new_tokens=16
    )
    return model


def sine_waves(width: int) -> Tensor:
    """Angular frequencies [width / 4] of one axis, wavelengths from 3 to 60 patches."""
    return 2 * math.pi / torch.logspace(math.log10(3.0), math.log10(60.0), width // 4)


def sine_grid(width: int) -> Tensor:
    """Position embeddings [576, width] to start from: with sines, attending to a neighbour is a rotation."""
    line = torch.arange(GRID)[:, None] * sine_waves(width)
    line = torch.cat([line.sin(), line.cos()], 1)
    rows = line[:, None].expand(GRID, GRID, -1)
    columns = line[None, :].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], -1).reshape(GRID * GRID, width)


def look_at_neighbours(attention: CLIPAttention, offsets: tuple[tuple[int, int], ...]) -> None:
    """Start each head looking at the patch (rows, columns) away: training then spends no time on finding locality.

    A query is its own position rotated by the offset, a key is its position: their product peaks at the neighbour.
    """
    width = attention.embed_dim
    quarter, pairs = width // 4, attention.head_dim // 4
    chosen = torch.arange(pairs) * 3 + 2  # waves of about 4 to 25 patches
    waves = sine_waves(width)[chosen]
    query, key = torch.zeros(width, width), torch.zeros(width, width)
    for head, offset in enumerate(offsets):
        for axis in range(2):
            out = head * attention.head_dim + axis * 2 * pairs + 2 * torch.arange(pairs)
            sine = axis * 2 * quarter + chosen
            cosine = sine + quarter
            key[out, sine] = key[out + 1, cosine] = FOCUS
            turn_cos, turn_sin = (waves * offset[axis]).cos() * FOCUS, (waves * offset[axis]).sin() * FOCUS
            query[out, sine], query[out, cosine] = turn_cos, turn_sin
            query[out + 1, cosine], query[out + 1, sine] = turn_cos, -turn_sin
    attention.q_proj.weight.add_(query)
    attention.k_proj.weight.add_(key)


def save(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint as llava-hf does; a new folder is complete before it takes the old one's place."""
    with staging(folder, replace=True) as new:
        _write(model, tokenizer, new)
        if (folder / "README.md").exists():
            (new / "README.md").write_text((folder / "README.md").read_text())


def _write(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, new: Path) -> None:
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    (new / "preprocessor_config.json").write_text(
        json.dumps(image_processor | {"processor_class": "LlavaProcessor"}, indent=2) + "\n"
    )
    # The class's name since transformers 4; version 5 writes a new one that 4 does not know.
    settings = json.loads((new / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (new / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (new / "model.safetensors").chmod(0o644)
    (new / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
