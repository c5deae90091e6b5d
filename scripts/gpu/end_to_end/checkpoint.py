"""Checkpoints of a public shape with random weights, written on the machine that runs them: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scripts.gpu.end_to_end.shapes import ModelShape
from sts_export.checkpoints.safetensors_header import TensorEntry, read_header
from sts_export.dtypes import ELEMENT_TYPES

if TYPE_CHECKING:
    import torch

STD = 0.02  # of LlamaConfig.initializer_range: logits stay finite in float16


def write_checkpoint(folder: Path, shape: ModelShape, device: str) -> int:
    """Configuration, tokenizer and processor files as tests/ writes them, then random tensors in place of theirs.

    Args:
        device: where torch draws the weights; the same seed gives other weights on another kind of device.

    Returns:
        Bytes of all tensors.
    """
    if shape.toy:
        _write_toy(folder, shape)
    else:
        from sts_export.testing.public_models import write_sparse_checkpoint

        write_sparse_checkpoint(folder, shape.hub_id)
    written = sum(fill(file, device, seed) for seed, file in enumerate(sorted(folder.glob("*.safetensors"))))
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()  # what torch keeps for itself, no contender can have
    return written


def fill(file: Path, device: str, seed: int) -> int:
    """Overwrite every tensor of a safetensors file, one after the other; returns the number of bytes."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    written = 0
    with file.open("r+b") as stream:
        for entry in read_header(file)[0].values():
            values = _values(entry, generator)
            stream.seek(entry.offset)
            written += stream.write(values.contiguous().view(torch.uint8).cpu().numpy().data)
    return written


def _write_toy(folder: Path, shape: ModelShape) -> None:
    from sts_export.testing.checkpoints import (
        RandomLlava,
        RandomLlavaNext,
        RandomQwen25VL,
        write_random_llava,
        write_random_llava_next,
        write_random_qwen2_5_vl,
    )

    if shape.name.startswith("qwen"):
        write_random_qwen2_5_vl(folder, RandomQwen25VL(layout="4.x"))
    elif shape.name.startswith("llava-next"):
        write_random_llava_next(folder, RandomLlavaNext(layout="4.x"))
    else:
        write_random_llava(folder, RandomLlava(layout="4.x"))


def _values(entry: TensorEntry, generator: torch.Generator) -> torch.Tensor:
    """Norms 1, biases 0, everything else normal with deviation STD."""
    import torch

    (name,) = (name for name, element in ELEMENT_TYPES.items() if element.safetensors == entry.dtype)
    dtype, device = getattr(torch, name), generator.device
    if entry.name.endswith("bias"):
        return torch.zeros(entry.shape, dtype=dtype, device=device)
    if "norm" in entry.name:  # CLIP's pre_layrnorm, too
        return torch.ones(entry.shape, dtype=dtype, device=device)
    return torch.randn(entry.shape, dtype=dtype, device=device, generator=generator).mul_(STD)
