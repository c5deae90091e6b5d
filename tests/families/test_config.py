"""Settings of config.json that the graphs cannot express are refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sts_export.errors import CheckpointError
from sts_export.families import family_of
from sts_export.families.spec import ModelSpec
from sts_export.testing.public_models import PUBLIC_MODELS

PUBLIC = {
    "vicuna": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "qwen": "Qwen/Qwen2.5-VL-7B-Instruct",
}


def parsed(name: str, processor: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    """The public model with ``part__name`` of its config.json replaced, or removed where the value is ``...``."""
    model = PUBLIC_MODELS[PUBLIC[name]]
    config = copy.deepcopy(model.config)
    for path, value in changes.items():
        part, _, key = path.rpartition("__")
        target = config[part] if part else config
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return family_of(config).parse(config, model.preprocessor if processor is None else processor)


YARN = {"type": "yarn", "factor": 4.0, "mrope_section": [16, 24, 24]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "next-qwen-decoder": ("vicuna", {"text_config__model_type": "qwen2"}, "unsupported language model 'qwen2'"),
    "next-siglip": ("vicuna", {"vision_config__model_type": "siglip_vision_model"}, "unsupported vision tower"),
    "next-feature-layers": ("mistral", {"vision_feature_layer": [-2, -5]}, "unsupported vision_feature_layer"),
    "next-full-features": ("mistral", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
    "next-projector": ("vicuna", {"projector_hidden_act": "relu6"}, "unsupported projector activation"),
    "next-yarn": ("mistral", {"text_config__rope_scaling": YARN}, "unsupported rotary embedding 'yarn'"),
    "next-llama3-rope": ("vicuna", {"text_config__rope_scaling": LLAMA3}, "unsupported rotary embedding 'llama3'"),
    "next-llama3-cut": ("vicuna", {"text_config__rope_scaling": {"rope_type": "llama3"}}, "impossible value"),
    "next-mrope": ("vicuna", {"text_config__rope_scaling": {"mrope_section": [8, 28, 28]}}, "unsupported mrope_section"),
    "next-tile-below-crop": ("vicuna", {"image_grid_pinpoints": [[336, 672], [300, 672]]}, "image_grid_pinpoints"),
    "next-tile-zero": ("vicuna", {"image_grid_pinpoints": [[0, 336]]}, "image_grid_pinpoints"),
    "next-tiles-text": ("vicuna", {"image_grid_pinpoints": "(1x1),...,(6x6)"}, "impossible value"),
    "next-tiles-flat": ("vicuna", {"image_grid_pinpoints": [336, 672]}, "impossible value"),
    "next-tile-huge": ("vicuna", {"image_grid_pinpoints": [[336, 336_000_000]]}, "impossible value"),
    "next-vision-text": ("vicuna", {"vision_config": "clip"}, "unsupported vision_config"),
    "qwen-yarn": ("qwen", {"rope_scaling": YARN}, "unsupported rotary embedding 'yarn'"),
    "qwen-no-sections": ("qwen", {"rope_scaling": ...}, "unsupported mrope_section []"),
    "qwen-two-sections": ("qwen", {"rope_scaling__mrope_section": [32, 32]}, "does not make half of head_dim 128"),
    "qwen-wrong-sections": ("qwen", {"rope_scaling__mrope_section": [16, 24, 25]}, "does not make half of head_dim 128"),
    "qwen-sections-text": ("qwen", {"rope_scaling__mrope_section": ["a", "b", "c"]}, "impossible value"),
    "qwen-activation": ("qwen", {"hidden_act": "relu6"}, "unsupported decoder activation"),
    "qwen-vision-activation": ("qwen", {"vision_config__hidden_act": "relu6"}, "unsupported vision activation"),
    "qwen-width": ("qwen", {"vision_config__out_hidden_size": 2048}, "unsupported out_hidden_size 2048"),
    "qwen-vision-heads": ("qwen", {"vision_config__num_heads": 15}, "vision heads do not divide evenly"),
    "qwen-patch-zero": ("qwen", {"vision_config__patch_size": 0}, "impossible value"),
    "qwen-window-zero": ("qwen", {"vision_config__window_size": 14}, "window_size in patches 0"),
    "qwen-no-layers": ("qwen", {"vision_config__depth": 0}, "impossible value"),
    "qwen-heads": ("qwen", {"num_key_value_heads": 3}, "heads do not divide evenly"),
    "next-decoder-list": ("vicuna", {"text_config__model_type": ["llama"]}, "unsupported language model"),
    "qwen-sections-negative": ("qwen", {"rope_scaling__mrope_section": [-2, 33, 33]}, "does not make half of head_dim 128"),
    "qwen-full-layers": ("qwen", {"vision_config__fullatt_block_indexes": [99]}, "names layers that are not there"),
    "qwen-vision-theta": ("qwen", {"vision_config__rope_parameters": {"rope_theta": 100.0}}, "vision rope_theta 100.0"),
    "qwen-vision-rope": (
        "qwen",
        {"vision_config__rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "vision rotary embedding",
    ),
    "qwen-image-token": ("qwen", {"image_token_id": -3}, "impossible value"),
    "qwen-theta": ("qwen", {"rope_theta": -1}, "rope_theta -1.0 is not a positive number"),
}


@pytest.mark.parametrize(("name", "changes", "expected"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_settings_that_the_graphs_cannot_express(name: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parsed(name, **changes)
    message = str(caught.value)
    assert expected in message and "config.json" in message and "\n" not in message


@pytest.mark.parametrize(
    "processor",
    [
        {"max_pixels": -5},
        {"max_pixels": "large"},
        {"max_pixels": [3]},
        {"size": {"longest_edge": -1}},
        {"size": {"longest_edge": "x"}},
        {"max_pixels": 1e300},
        {"max_pixels": float("inf")},
        {"max_pixels": float("nan")},
    ],
    ids=repr,
)
def test_pixels_that_no_processor_makes(processor: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parsed("qwen", processor)
    assert "\n" not in str(caught.value)


# Attention windows


@pytest.mark.parametrize(
    ("name", "changes", "positions"),
    [
        ("mistral", {}, 32768),
        ("mistral", {"text_config__sliding_window": 4096}, 4096),
        ("mistral", {"text_config__sliding_window": 65536}, 32768),
        ("mistral", {"text_config__sliding_window": ...}, 4096),  # MistralConfig's default
        ("vicuna", {}, 4096),
        ("vicuna", {"text_config__max_position_embeddings": ...}, 2048),  # LlamaConfig's
        ("qwen", {}, 128000),  # sliding_window 32768 is not in force
        ("qwen", {"use_sliding_window": True}, 128000),  # max_window_layers are all layers
        ("qwen", {"use_sliding_window": True, "max_window_layers": 27}, 32768),
        ("qwen", {"use_sliding_window": False, "max_window_layers": 0}, 128000),
        ("mistral", {"text_config__sliding_window": 4096, "text_config__use_sliding_window": False}, 4096),  # not its setting
        ("vicuna", {"text_config__sliding_window": 1024}, 1024),  # of the KV cache
        ("qwen", {"use_sliding_window": True, "sliding_window": None}, 128000),
        ("qwen", {"use_sliding_window": ...}, 128000),
    ],
)
def test_an_attention_window_limits_positions(name: str, changes: dict[str, Any], positions: int) -> None:
    assert parsed(name, **changes).max_positions == positions


# Other values than the public ones


@pytest.mark.parametrize(
    ("pinpoints", "tokens", "newlines"),
    [
        ([[336, 336]], 2 * 576, 24),
        ([[336, 1344], [672, 672]], 5 * 576, 48),
        ([[1680, 336], [336, 672]], 6 * 576, 120),
        ([[2016, 2016]], 37 * 576, 144),
    ],
)
def test_tilings_decide_the_largest_image(pinpoints: list[list[int]], tokens: int, newlines: int) -> None:
    spec = parsed("vicuna", image_grid_pinpoints=pinpoints)
    assert (spec.max_image_tokens, spec.max_image_newlines) == (tokens, newlines)
    assert spec.tile_resolutions == tuple((height, width) for height, width in pinpoints)


def test_tilings_left_out_are_the_public_ones() -> None:
    assert parsed("vicuna", image_grid_pinpoints=...) == parsed("vicuna")


def test_a_decoder_with_linear_rope() -> None:
    spec = parsed("vicuna", text_config__rope_scaling={"type": "linear", "factor": 2.0})
    assert (spec.decoder.rope_factor, parsed("vicuna").decoder.rope_factor) == (2.0, 1.0)


@pytest.mark.parametrize("name", ["vicuna", "qwen"])
def test_heads_that_are_tied(name: str) -> None:
    assert not parsed(name).decoder.tie_word_embeddings
    assert parsed(name, tie_word_embeddings=True).decoder.tie_word_embeddings


@pytest.mark.parametrize("name", ["mistral", "qwen"])
def test_biases_follow_the_decoder_not_a_setting(name: str) -> None:
    """transformers gives Mistral none and Qwen2 those of q, k and v, whatever config.json says."""
    key = "text_config__attention_bias" if name == "mistral" else "attention_bias"
    for value in (True, False):
        changes: dict[str, Any] = {key: value}
        decoder = parsed(name, **changes).decoder
        assert (decoder.attention_bias, decoder.output_bias) == (name == "qwen", False)
