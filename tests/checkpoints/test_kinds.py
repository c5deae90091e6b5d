"""Folders that look like a checkpoint and are another kind: each is refused by its own name, before its tensors are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.quantization_config import QuantizationMethod

from sts_export.checkpoints.checkpoint import open_checkpoint
from sts_export.errors import CheckpointError
from sts_export.families import families, family_of

PLAIN: dict[str, Any] = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}

METHODS = {
    "awq": (
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantized with AWQ (quantization_config in config.json)",
    ),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized with GPTQ"),
    "bnb-4bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantized with bitsandbytes 4-bit",
    ),
    "bnb-8bit-old": ({"quantization_config": {"load_in_8bit": True}}, "quantized with bitsandbytes 8-bit"),
    "no-method": ({"quantization_config": {"bits": 4}}, "quantized with an unknown method"),
    "in-the-decoder": (
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        "quantized with fp8 (quantization_config in text_config of config.json)",
    ),
    "compressed-tensors-old": (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        "quantized with compressed-tensors (compression_config in config.json)",
    ),
}
OTHERS = {
    "original-type": ({"model_type": "llava_llama"}, "LLaVA in its authors' original format (model_type llava_llama"),
    "original-keys": ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "original format (mm_vision_tower in"),
    "original-class": (
        {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_hidden_size": 1024},
        "original format (mm_hidden_size in",
    ),
    "own-code": (
        {"auto_map": {"AutoProcessor": "mine.MyProcessor", "AutoModelForImageTextToText": "modeling_mine.MyLlava"}},
        "code of its own (auto_map in config.json names modeling_mine.MyLlava)",
    ),
}


def refusal(folder: Path, config: dict[str, Any], *files: str) -> str:
    """Of a folder whose weight file would be refused, too."""
    (folder / "config.json").write_text(json.dumps(PLAIN | config))
    for name in ("model.safetensors", *files):
        (folder / name).write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("config", "expected"), METHODS.values(), ids=METHODS.keys())
def test_quantized_checkpoints(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    message = refusal(tmp_path, config)
    assert expected in message and "export the unquantized model with --quantize int4" in message


@pytest.mark.parametrize("method", [method.value for method in QuantizationMethod])
def test_every_method_of_transformers_is_named(tmp_path: Path, method: str) -> None:
    assert f"quantized with {method} (" in refusal(tmp_path, {"quantization_config": {"quant_method": method}}).lower()


@pytest.mark.parametrize(
    ("file", "method"),
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")],
)
def test_quantized_checkpoints_that_only_a_file_tells(tmp_path: Path, file: str, method: str) -> None:
    assert f"quantized with {method} ({file})" in refusal(tmp_path, {}, file)


@pytest.mark.parametrize(("config", "expected"), OTHERS.values(), ids=OTHERS.keys())
def test_other_formats(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, config)


def test_a_distributed_save(tmp_path: Path) -> None:
    assert "is a distributed save" in refusal(tmp_path, {}, "shard-00000-model-00001-of-00001.safetensors")


@pytest.mark.parametrize("classes", [{}, {"AutoProcessor": "processing_mine.MyProcessor"}], ids=["empty", "processor"])
def test_a_plain_checkpoint_is_of_no_other_kind(tmp_path: Path, classes: dict[str, str]) -> None:
    message = refusal(tmp_path, {"quantization_config": None, "auto_map": classes})
    assert "model.safetensors is not a complete safetensors file" in message


@pytest.mark.parametrize("model_type", families())
@pytest.mark.parametrize("name", ["{}ForSequenceClassification", "{}Model", "LlamaForCausalLM"])
def test_another_class_of_the_same_type(model_type: str, name: str) -> None:
    shown = name.format(families()[model_type].architecture.removesuffix("ForConditionalGeneration"))
    with pytest.raises(CheckpointError, match=f"config.json says that the model is a {shown}, but of {model_type} only"):
        family_of({"model_type": model_type, "architectures": [shown]})


@pytest.mark.parametrize("model_type", families())
def test_the_class_that_transformers_writes(model_type: str) -> None:
    name = families()[model_type].architecture
    for classes in ([name], [f"FSDP{name}"], [], None):
        assert family_of({"model_type": model_type, "architectures": classes}) is families()[model_type]
