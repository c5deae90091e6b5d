"""The public checkpoints' shapes and files: as transformers builds them from the same config, and without using disk."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from sts_export.testing.public_models import PUBLIC_MODELS, tensor_shapes, write_sparse_checkpoint

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
# In-memory names of transformers 5.23 → names on the hub, first match.
HUB_NAMES = {
    "llava": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.", ""),
    ],
    "qwen2_5_vl": [(r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")],
}


def hub_name(name: str, family: str) -> str:
    for pattern, replacement in HUB_NAMES[family]:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_shapes_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC_MODELS[name].config))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    family = "qwen2_5_vl" if config.model_type == "qwen2_5_vl" else "llava"
    expected = {hub_name(key, family): tuple(value.shape) for key, value in model.named_parameters()}
    assert tensor_shapes(name) == expected


@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_number_of_parameters(name: str) -> None:
    billions = sum(prod(shape) for shape in tensor_shapes(name).values()) / 1e9
    assert round(billions, 2) == PUBLIC_MODELS[name].parameters


def test_size_of_qwen_is_the_published_one() -> None:
    """``total_size`` of the hub's model.safetensors.index.json."""
    assert 2 * sum(prod(shape) for shape in tensor_shapes(QWEN).values()) == 16584333312


@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_sparse_files(tmp_path: Path, name: str) -> None:
    folder = write_sparse_checkpoint(tmp_path, name)
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) == 3
    sizes = [file.stat().st_size for file in files]
    assert sum(sizes) > PUBLIC_MODELS[name].parameters * 1.99e9 and min(sizes) > sum(sizes) / 4
    assert sum(file.stat().st_blocks * 512 for file in files) < 2_000_000
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no dict
                found[key] = tuple(file.get_slice(key).get_shape())
                assert file.get_slice(key).get_dtype() == ("BF16" if name.startswith("Qwen") else "F16")
                assert index["weight_map"][key] == path.name
    assert found == tensor_shapes(name)
    first = next(iter(tensor_shapes(name)))  # a small one
    with safe_open(files[0], framework="pt") as file:
        assert not file.get_tensor(first).any()
    assert index["metadata"]["total_size"] == 2 * sum(prod(shape) for shape in found.values())


@pytest.mark.parametrize("name", ["llava-hf/llava-v1.6-mistral-7b-hf", QWEN])
def test_tokenizer_has_the_ids_of_the_config(tmp_path: Path, name: str) -> None:
    folder = write_sparse_checkpoint(tmp_path, name, shards=1)
    assert not (folder / "model.safetensors.index.json").exists()
    config = PUBLIC_MODELS[name].config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name == QWEN:
        ids = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|image_pad|>": config["image_token_id"], "<|file_sep|>": 151664}
        assert tokenizer("<|im_start|>What?")["input_ids"][0] == 151644
    else:
        ids = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": config["image_token_index"], "<pad>": 32001}
        assert tokenizer("What?")["input_ids"][0] == 1
    assert tokenizer.convert_tokens_to_ids(list(ids)) == list(ids.values())
    assert len(tokenizer) == max(ids.values()) + 1
