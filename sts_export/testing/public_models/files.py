"""Folders with the files of a public checkpoint, whose tensors are holes."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

from sts_export.testing.public_models.configs import PUBLIC_MODELS, Json, PublicModel
from sts_export.testing.public_models.shapes import Shape, tensor_shapes
from sts_export.testing.public_models.tokenizers import llama_tokenizer, qwen_tokenizer


def write_sparse_checkpoint(folder: str | Path, name: str, shards: int = 3) -> Path:
    """Write a public checkpoint whose tensors are holes: true sizes and offsets, all zeros, next to no disk.

    Args:
        name: hub id, a key of PUBLIC_MODELS.
        shards: number of safetensors files (PUBLIC_MODELS[name].shards is the hub's); 1: model.safetensors without an index.
    """
    model = PUBLIC_MODELS[name]
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(name)
    total = sum(2 * prod(shape) for shape in shapes.values())
    parts: list[dict[str, Shape]] = [{} for _ in range(shards)]
    before = 0
    for tensor, shape in shapes.items():
        parts[before * shards // total][tensor] = shape
        before += 2 * prod(shape)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        _write_holes(path / file, part, model.dtype)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        _write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_companions(model, path)
    return path


def _write_holes(file: Path, shapes: dict[str, Shape], dtype: str) -> None:
    header: Json = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def _write_companions(model: PublicModel, path: Path) -> None:
    _write_json(path / "config.json", model.config)
    _write_json(path / "generation_config.json", model.generation)
    _write_json(path / "preprocessor_config.json", model.preprocessor)
    _write_json(path / "chat_template.json", {"chat_template": model.chat_template})
    if model.processor:
        _write_json(path / "processor_config.json", model.processor)
    stand_in = qwen_tokenizer() if model.config["model_type"] == "qwen2_5_vl" else llama_tokenizer()
    stand_in.save_pretrained(path)


def _write_json(file: Path, content: Json) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
