"""Random weights of a trained selector, for stages that have weights of their own."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_random_selector(file: Path, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A file for vision features of ``width``; the same arguments always give the same file.

    Keep probabilities spread out: few of them are close to 0 or 1.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {"linear_1": (width // 2, width), "linear_2": (2, width // 2)}
    shapes: dict[str, tuple[int, ...]] = {f"{layer}.weight": shape for layer, shape in layers.items()}
    shapes |= {f"{layer}.bias": shape[:1] for layer, shape in layers.items()}
    tensors = {
        f"selector.{name}": (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).to(dtype)
        for name, shape in shapes.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file
