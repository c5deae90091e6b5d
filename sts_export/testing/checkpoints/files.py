"""What every family does to a saved folder: random weights into it, other tensor names, JSON of older releases."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def randomize(model: Any, weight: Callable[[str, torch.Size], torch.Tensor]) -> None:
    """Give every parameter of a transformers model the value of ``weight(name, shape)``, keeping tied ones tied."""
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.data = weight(name, parameter.shape)
    model.tie_weights()


def random_weight(name: str, shape: torch.Size, *, seed: int, tied_width: int | None) -> torch.Tensor:
    """Each weight has its own generator, so that it does not depend on the order of the modules.

    Args:
        tied_width: width of the decoder if its embedding is its head, too, and so decides the scale of the logits.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise: torch.Tensor = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.2 * noise
    if "norm" in name or "layrnorm" in name or "ln_q" in name:
        return 1 + 0.25 * noise
    if "embed_tokens" in name:
        return 0.5 * noise if tied_width is None else noise / math.sqrt(tied_width)
    if "class_embedding" in name or "position_embedding" in name or "image_newline" in name:
        return noise
    gain: float = 2.5 if "lm_head" in name else 1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.2
    return noise * (gain / math.sqrt(noise[0].numel()))


def rename_tensors(path: Path, expected: tuple[str, ...], renamed: Callable[[str], str]) -> None:
    """Rewrite the safetensors files and their index with other names.

    Args:
        expected: what names may start with; another one means that transformers changed what it writes.
    """
    for file in sorted(path.glob("*.safetensors")):
        tensors = load_file(file)
        if not all(name.startswith(expected) for name in tensors):
            raise AssertionError(f"transformers writes new names, describe them here: {sorted(tensors)[:3]}")
        save_file({renamed(name): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    index = path / "model.safetensors.index.json"
    if index.exists():
        content = read_json(index)
        content["weight_map"] = {renamed(name): file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def old_rope(text: dict[str, Any]) -> None:
    """``rope_parameters`` of 5.x → ``rope_theta`` and ``rope_scaling`` of 4.x, in place."""
    text.update(rope_theta=text.pop("rope_parameters")["rope_theta"], rope_scaling=None)


def old_processor_files(path: Path, processor_class: str) -> None:
    """Split processor_config.json of 5.x into the files of 4.x, with the chat template as JSON."""
    processor = read_json(path / "processor_config.json")
    write_json(path / "preprocessor_config.json", {**processor.pop("image_processor"), "processor_class": processor_class})
    write_json(path / "processor_config.json", processor)
    write_json(path / "chat_template.json", {"chat_template": (path / "chat_template.jinja").read_text()})
    (path / "chat_template.jinja").unlink()
