"""Old and new spellings of the same setting, together and apart: ours is the model that transformers builds.

The reference is the model of transformers itself: its modules, and its answers.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText

from sts_export import Pipeline
from sts_export.errors import CheckpointError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.families import family_of
from sts_export.families.spec import ModelSpec
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.testing.checkpoints import RandomLlava, RandomQwen25VL, write_random_llava, write_random_qwen2_5_vl
from tests.support.parity import Spec, Transformers, pictures, relative_error

torch.set_num_threads(1)

GONE: Any = ...  # the key is not there
SECTION = {"mrope_section": [2, 3, 3]}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
}
QWEN_VISION = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "depth": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
}


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([GONE, *values])


ROPE = {
    "rope_theta": some(500000.0, 1e6),
    "rope_scaling": some(
        None,
        {},
        {"type": "linear", "factor": 4.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 777.0},
        {"type": "default"},
        {"type": "linear", "rope_type": "default", "factor": 8.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {"rope_type": "dynamic", "factor": 4.0},
    ),
    "rope_parameters": some(
        None,
        {"rope_type": "default", "rope_theta": 12345.0},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5},
        {"rope_theta": 999.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 5.0}},
    ),
    "partial_rotary_factor": some(1.0, 0.5),
}
DECODER = {
    **ROPE,
    "num_hidden_layers": some(2),
    "num_key_value_heads": some(None, 4),
    "head_dim": some(None, 16, 8),
    "attention_bias": some(True, False),
    "mlp_bias": some(True, False),
    "rms_norm_eps": some(1e-3),
    "hidden_act": some("gelu"),
    "tie_word_embeddings": some(True, False),
    "dtype": some("float16"),
}
OUTER = {
    "image_token_index": some(3, 7),
    "image_token_id": some(5, 7),
    "tie_word_embeddings": some(True, False),
    "torch_dtype": some("bfloat16"),
}
MROPE = {
    **{name: values for name, values in DECODER.items() if not name.startswith("rope_")},
    "rope_theta": ROPE["rope_theta"],
    "rope_scaling": some(
        None,
        {"type": "mrope", **SECTION},
        {"type": "default", "mrope_section": [4, 2, 2]},
        {"type": "linear", "factor": 4.0, **SECTION},
        {"type": "yarn", "factor": 4.0, **SECTION},
    ),
    "rope_parameters": some(
        None,
        {"rope_type": "default", "rope_theta": 12345.0, **SECTION},
        {"rope_type": "linear", "factor": 3.0, "mrope_section": [1, 3, 4]},
        {"rope_type": "mrope", "rope_theta": 3.0, **SECTION},
    ),
}
CLIP = {"num_hidden_layers": some(3), "num_channels": some(1), "hidden_act": some("gelu"), "layer_norm_eps": some(1e-3)}


def present(values: dict[str, Any]) -> dict[str, Any]:
    # Copies: transformers writes into what it is given.
    return {name: json.loads(json.dumps(value)) for name, value in values.items() if value is not GONE}


def drawn(strategies: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(strategies).map(present)


def llava(kind: str, decoder: str) -> st.SearchStrategy[dict[str, Any]]:
    def made(outer: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
        parts = {"text_config": {"model_type": decoder, **SIZES, **text}, "vision_config": {**VISION, **vision}}
        return {"model_type": kind, **outer, **parts}

    return st.builds(made, drawn(OUTER), drawn(DECODER), drawn(CLIP))


def qwen() -> st.SearchStrategy[dict[str, Any]]:
    """The decoder's settings on the top level, in text_config, or in both."""

    def made(outer: dict[str, Any], flat: dict[str, Any], nested: Any, vision: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = {"model_type": "qwen2_5_vl", **SIZES, **flat, **outer}
        config["vision_config"] = {**QWEN_VISION, **vision}
        return config if nested is None else {**config, "text_config": {**SIZES, **nested}}

    vision = {"in_chans": some(1, 3), "in_channels": some(1, 3), "num_attention_heads": some(2, 4)}
    return st.builds(made, drawn(OUTER), drawn(MROPE), st.none() | drawn(MROPE), drawn(vision))


def check(spec: ModelSpec, model: Any) -> None:
    """Every number that the graphs are made of is one of the model's modules."""
    decoder, text = spec.decoder, model.model.language_model
    exponents = torch.arange(0, decoder.head_dim, 2).double() / decoder.head_dim
    frequencies = 1 / (decoder.rope_theta**exponents * decoder.rope_factor)
    torch.testing.assert_close(text.rotary_emb.inv_freq.double(), frequencies, rtol=1e-5, atol=0)
    assert text.rotary_emb.attention_scaling == 1
    if decoder.mrope_section:
        assert list(decoder.mrope_section) == list(text.config.rope_parameters["mrope_section"])
    layer = text.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert len(text.layers) == decoder.num_layers
    assert attention.q_proj.out_features == decoder.num_heads * decoder.head_dim and attention.head_dim == decoder.head_dim
    assert attention.k_proj.out_features == decoder.num_kv_heads * decoder.head_dim
    assert [attention.q_proj.bias is not None, attention.o_proj.bias is not None, mlp.up_proj.bias is not None] == [
        decoder.attention_bias,
        decoder.output_bias,
        decoder.mlp_bias,
    ]
    assert layer.input_layernorm.variance_epsilon == decoder.rms_norm_eps
    values = torch.linspace(-3, 3, 7)
    activations: dict[str, Any] = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}
    torch.testing.assert_close(mlp.act_fn(values), activations[decoder.activation](values))
    assert (model.lm_head.out_features, model.lm_head.in_features) == (decoder.vocab_size, decoder.hidden_size)
    assert (model.lm_head.weight is text.embed_tokens.weight) == decoder.tie_word_embeddings
    assert spec.image_token_id == model.config.image_token_id
    assert spec.max_positions <= text.config.max_position_embeddings
    tower = model.model.vision_tower if isinstance(spec.vision, ClipVisionConfig) else model.model.visual
    convolution = next(module for module in tower.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)))
    assert convolution.in_channels == spec.vision.num_channels
    if isinstance(spec.vision, ClipVisionConfig):
        assert len(tower.encoder.layers) == spec.vision.feature_layers + 1
        assert tower.encoder.layers[0].layer_norm1.eps == spec.vision.layer_norm_eps
    else:
        assert isinstance(spec.vision, QwenVisionConfig)
        assert (len(tower.blocks), tower.blocks[0].attn.num_heads) == (spec.vision.num_layers, spec.vision.num_heads)


REFUSED = ("rotary embedding", "mrope_section", "partial_rotary_factor", "head_dim")


def compare(config: dict[str, Any], folder: Path) -> str:
    """Ours against transformers; says how it went."""
    before = json.dumps(config)
    (folder / "config.json").write_text(before)
    try:
        spec = family_of(config).parse(config, {})
    except CheckpointError as error:
        assert "\n" not in str(error)
        if any(str(error).startswith(f"unsupported {name}") for name in REFUSED):
            return "refused"
        try:
            AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
        except Exception:  # whatever transformers raises
            return "impossible"
        raise AssertionError(f"transformers takes it: {error}") from None
    finally:
        assert json.dumps(config) == before
    check(spec, AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32))
    return "equal"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


quick = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def beside(**text: Any) -> dict[str, Any]:
    return {"model_type": "llava", "text_config": {**SIZES, **text}, "vision_config": VISION}


LINEAR = {"type": "linear", "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@quick
@given(config=llava("llava", "llama"))
@example(config=beside(rope_scaling=LINEAR, rope_parameters=DEFAULT))
def test_llava(scratch: Path, config: dict[str, Any]) -> None:
    compare(config, scratch)


@quick
@given(config=st.sampled_from(["llama", "mistral"]).flatmap(lambda decoder: llava("llava_next", decoder)))
def test_llava_next(scratch: Path, config: dict[str, Any]) -> None:
    compare(config, scratch)


@quick
@given(config=qwen())
def test_qwen2_5_vl(scratch: Path, config: dict[str, Any]) -> None:
    compare(config, scratch)


NEXT = {"model_type": "llava_next", "text_config": {"model_type": "mistral", **SIZES}, "vision_config": VISION}
FLAT = {"model_type": "qwen2_5_vl", **SIZES, "vision_config": QWEN_VISION, "rope_scaling": {"type": "mrope", **SECTION}}
TEXT = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 3.0, **SECTION}}
# What changed with the reading: config, and how it must go.
DISPUTED: dict[str, tuple[dict[str, Any], str]] = {
    "linear-beside": (beside(rope_scaling=LINEAR, rope_parameters=DEFAULT), "equal"),
    "yarn-beside": (beside(rope_scaling={"type": "yarn", "factor": 4.0}, rope_parameters=DEFAULT), "refused"),
    "default-over-linear": (
        beside(rope_scaling={"type": "default"}, rope_parameters={"rope_type": "linear", **LINEAR}),
        "equal",
    ),
    "theta-of-the-loser": (beside(rope_scaling=LINEAR, rope_parameters={"rope_type": "default", "rope_theta": 5.0}), "equal"),
    "both-types": (beside(rope_scaling={"type": "linear", "rope_type": "default", "factor": 4.0}), "equal"),
    "partial": (beside(rope_parameters={"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}), "refused"),
    "image-token-twice": ({**beside(), "image_token_index": 3, "image_token_id": 5}, "equal"),
    "tied-inside": ({**beside(tie_word_embeddings=True), "tie_word_embeddings": False}, "equal"),
    "next-tied-inside": ({**NEXT, "text_config": {**NEXT["text_config"], "tie_word_embeddings": True}}, "equal"),  # type: ignore[dict-item]
    "default-tower": ({"model_type": "llava", "text_config": {**SIZES}}, "tower"),
    "qwen-text-beside-flat": ({**FLAT, "rope_theta": 5e5, "num_hidden_layers": 3, "text_config": TEXT}, "equal"),
    "qwen-channels": ({**FLAT, "vision_config": {**QWEN_VISION, "in_chans": 1}}, "equal"),
    "qwen-tower-aliases": (
        {**FLAT, "vision_config": {**QWEN_VISION, "num_hidden_layers": 3, "num_attention_heads": 4}},
        "equal",
    ),
    "qwen-tied-inside": ({**FLAT, "text_config": {**TEXT, "tie_word_embeddings": True}}, "equal"),
    "qwen-head-dim": ({**FLAT, "text_config": {**TEXT, "head_dim": 8}}, "refused"),
}


@pytest.mark.parametrize("case", DISPUTED)
def test_disputed_settings(tmp_path: Path, case: str) -> None:
    config, expected = DISPUTED[case]
    if expected == "tower":
        vision = family_of(config).parse(config, {}).vision
        (tmp_path / "config.json").write_text(json.dumps(config))
        theirs = AutoConfig.from_pretrained(tmp_path).vision_config
        assert isinstance(vision, ClipVisionConfig)
        assert (vision.image_size, vision.hidden_size) == (theirs.image_size, theirs.hidden_size) == (336, 1024)
        return
    assert compare(config, tmp_path) == expected


# Settings that transformers reads elsewhere or that the graphs do not have


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ({"text_config": {**SIZES, "per_layer_config": {"0": {"hidden_size": 32}}}}, "per_layer_config"),
        ({"text_config": {**SIZES, "num_hidden_layers": 2, "layer_types": ["chunked_attention"] * 2}}, "layer_types"),
        ({"text_config": {**SIZES, "num_hidden_layers": 10**15}}, "num_hidden_layers"),
        ({"text_config": {**SIZES, "hidden_size": 64.5}}, "hidden_size"),
        ({"text_config": {**SIZES, "rope_scaling": {"type": "longrope", "factor": 2.0}}}, "impossible value"),
        ({"text_config": {**SIZES, "rope_scaling": {"factor": 2.0, "rope_type": "ntk"}}}, "rotary embedding 'ntk'"),
        ({"vision_config": {**VISION, "image_size": [28, 56]}}, "impossible value"),
    ],
)
def test_refusals_name_the_setting(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of({"model_type": "llava"}).parse({**beside(), **change}, {})
    message = str(caught.value)
    assert expected in message and "config.json" in message and "\n" not in message


def test_a_refused_decoder_is_not_said_to_be_exported() -> None:
    """Mistral decoders are LLaVA-NeXT's only."""
    with pytest.raises(CheckpointError, match="unsupported language model 'mistral'") as caught:
        family_of({"model_type": "llava"}).parse({"model_type": "llava", "text_config": {"model_type": "mistral"}}, {})
    assert "LLaVA-1.5 (CLIP tower, Llama decoder), LLaVA-NeXT (" in str(caught.value)


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "qwen2_5_vl"])
def test_lists_of_labels_are_not_made(model_type: str) -> None:
    """num_labels makes a list of names in transformers, which no graph needs."""
    base: dict[str, Any] = {"llava": beside(), "llava_next": NEXT, "qwen2_5_vl": FLAT}[model_type]
    assert family_of(base).parse({**base, "num_labels": 10**15}, {}) == family_of(base).parse(base, {})


def test_what_transformers_finds_odd_is_not_said() -> None:
    """An export's errors are one line, and its success is silent."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    config = {**FLAT, "text_config": {**TEXT, "eos_token_id": 10**6}, "rope_parameters": {"odd": 1, "rope_type": "default"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            family_of(config).parse(config, {})
            assert (records, logger.level) == ([], level)
    finally:
        logger.removeHandler(handler)


# Answers

ANSWERED: dict[str, tuple[Spec, dict[str, Any]]] = {
    "llava-linear": (RandomLlava(seed=80, layers=2, vision_layers=2), {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "qwen-linear": (
        RandomQwen25VL(seed=81, layers=2, vision_layers=2, fullatt_block_indexes=(1,)),
        {"rope_scaling": {"type": "linear", "factor": 4.0, "mrope_section": [2, 3, 3]}, "rope_theta": 500.0},
    ),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_answers_with_rope_scaling_beside_rope_parameters(tmp_path: Path, case: str) -> None:
    spec, added = ANSWERED[case]
    write: Any = write_random_llava if isinstance(spec, RandomLlava) else write_random_qwen2_5_vl
    folder = write(tmp_path / "checkpoint", spec)
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["rope_parameters"]["rope_type"] == "default"
    config["text_config"].update(added)
    (folder / "config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    images = pictures(5, [(90, 70)])
    expected, logits = Transformers(folder, spec).generate(messages, images, 16)
    request = ExportRequest(str(folder), tmp_path / "bundle", budget="100%", max_prompt_tokens=120, max_new_tokens=16)
    bundle = export(request)
    assert json.loads((bundle.folder / "config.json").read_text()) == config
    vlm = Pipeline(bundle.folder, threads=1)
    assert vlm.generate(messages, images, max_new_tokens=16, ignore_eos=True).token_ids == expected
    assert relative_error(vlm.score(messages, images, expected), logits) < 1e-3
