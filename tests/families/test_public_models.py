"""Dimensions of the public checkpoints, from their config.json and preprocessor_config.json alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sts_export.families import family_of
from sts_export.families.spec import ModelSpec
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.json_records import decode, encode
from sts_export.pruning.choosing import config_for_budget
from sts_export.testing.public_models import PUBLIC_MODELS

LLAVA_7B = {"num_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_heads": 32, "num_kv_heads": 32}
LLAMA = {"head_dim": 128, "vocab_size": 32064, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "attention_bias": False}
QWEN: dict[str, Any] = {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "attention_bias": True}
QWEN |= {"output_bias": False, "mlp_bias": False, "mrope_section": (16, 24, 24), "activation": "silu"}
# decoder; then visual tokens, newlines, positions, image token
EXPECTED: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "llava-hf/llava-1.5-7b-hf": ({**LLAMA, **LLAVA_7B}, (576, 0, 4096, 32000)),
    "llava-hf/llava-1.5-13b-hf": (
        {**LLAMA, "num_layers": 40, "hidden_size": 5120, "intermediate_size": 13824, "num_heads": 40, "num_kv_heads": 40},
        (576, 0, 4096, 32000),
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": ({**LLAMA, **LLAVA_7B}, (2880, 72, 4096, 32000)),
    "llava-hf/llava-v1.6-mistral-7b-hf": (
        {**LLAMA, **LLAVA_7B, "intermediate_size": 14336, "num_kv_heads": 8, "rope_theta": 1e6},
        (2880, 72, 32768, 32000),
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        {**QWEN, "num_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_heads": 28, "num_kv_heads": 4}
        | {"vocab_size": 152064, "tie_word_embeddings": False},
        (16384, 0, 128000, 151655),
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        {**QWEN, "num_layers": 36, "hidden_size": 2048, "intermediate_size": 11008, "num_heads": 16, "num_kv_heads": 2}
        | {"vocab_size": 151936, "tie_word_embeddings": True},
        (16384, 0, 128000, 151655),
    ),
}


def spec_of(name: str) -> ModelSpec:
    model = PUBLIC_MODELS[name]
    return family_of(model.config).parse(model.config, model.preprocessor)


def test_every_public_model_is_here() -> None:
    assert EXPECTED.keys() == PUBLIC_MODELS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_dimensions(name: str) -> None:
    spec = spec_of(name)
    decoder, numbers = EXPECTED[name]
    assert {key: getattr(spec.decoder, key) for key in decoder} == decoder
    assert (spec.max_image_tokens, spec.max_image_newlines, spec.max_positions, spec.image_token_id) == numbers
    assert spec.family == PUBLIC_MODELS[name].config["model_type"]
    assert decode(ModelSpec, json.loads(json.dumps(encode(spec)))) == spec
    if isinstance(spec.vision, ClipVisionConfig):
        vision = spec.vision
        assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.feature_layers) == (336, 14, 1024, 23)
        assert (vision.num_heads, vision.intermediate_size, vision.grid_side, vision.num_patches) == (16, 4096, 24, 576)
        assert spec.projector is not None and (spec.projector.input_size, spec.tower.width) == (1024, 1024)
        assert (spec.projector.hidden_size, spec.projector.activation) == (spec.decoder.hidden_size, "gelu")
        assert spec.image_token == "<image>"
    else:
        assert isinstance(spec.vision, QwenVisionConfig) and spec.projector is None
        tower = spec.vision
        assert (tower.num_layers, tower.hidden_size, tower.intermediate_size, tower.num_heads) == (32, 1280, 3420, 16)
        assert (tower.patch_size, tower.temporal_patch_size, tower.merge_size, tower.window_patches) == (14, 2, 2, 8)
        assert tower.full_attention_layers == (7, 15, 23, 31)
        assert spec.tower.width == tower.out_hidden_size == spec.decoder.hidden_size
        assert spec.image_token == "<|image_pad|>"


@pytest.mark.parametrize("name", [name for name in EXPECTED if "v1.6" in name])
def test_tilings_of_llava_next(name: str) -> None:
    pinpoints = PUBLIC_MODELS[name].config["image_grid_pinpoints"]
    assert spec_of(name).tile_resolutions == tuple(tuple(pinpoint) for pinpoint in pinpoints)


@pytest.mark.parametrize(
    ("name", "budget", "keep", "layer"),
    [
        ("llava-hf/llava-1.5-7b-hf", "64", (96, 32), 16),
        ("llava-hf/llava-1.5-13b-hf", "64", (107, 35), 16),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "320", (480, 160), 16),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "64", (96, 32), 14),
    ],
)
def test_the_papers_settings(name: str, budget: str, keep: tuple[int, int], layer: int) -> None:
    spec = spec_of(name)
    config = config_for_budget(budget, num_visual_tokens=spec.max_image_tokens, num_layers=spec.decoder.num_layers)
    assert (config.keep_stage1, config.keep_stage2, config.prune_layer) == (*keep, layer)


def test_defaults_are_those_of_transformers() -> None:
    """A config.json without any number is the public default of transformers' configuration classes."""
    from transformers import LlavaConfig, LlavaNextConfig, MistralConfig, Qwen2_5_VLConfig

    cases: list[tuple[Any, dict[str, Any]]] = [
        (LlavaConfig(), {"model_type": "llava"}),
        (LlavaNextConfig(), {"model_type": "llava_next"}),
        (LlavaNextConfig(text_config=MistralConfig()), {"model_type": "llava_next", "text_config": {"model_type": "mistral"}}),
        (Qwen2_5_VLConfig(), {"model_type": "qwen2_5_vl"}),
    ]
    for config, empty in cases:
        text = config.text_config
        if empty["model_type"] == "qwen2_5_vl":
            text.rope_parameters["mrope_section"] = [16, 24, 24]
            empty["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
            empty["vision_config"] = {"out_hidden_size": text.hidden_size}
        decoder = family_of(empty).parse(empty, {}).decoder
        for ours, theirs in (
            ("hidden_size", "hidden_size"),
            ("intermediate_size", "intermediate_size"),
            ("num_layers", "num_hidden_layers"),
            ("num_heads", "num_attention_heads"),
            ("num_kv_heads", "num_key_value_heads"),
            ("vocab_size", "vocab_size"),
            ("rms_norm_eps", "rms_norm_eps"),
            ("activation", "hidden_act"),
        ):
            assert getattr(decoder, ours) == getattr(text, theirs), (empty, ours)
        assert decoder.rope_theta == text.rope_parameters["rope_theta"], empty
