"""Random checkpoints: every tensor is written, with sensible values, and transformers and sts-export read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.gpu.checkpoint import STD, fill, write_checkpoint
from scripts.gpu.shapes import SHAPES, ModelShape
from sts_export.testing.public_models import PUBLIC_MODELS


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ModelShape:
    return ModelShape(request.param, toy=True)


def test_shapes_are_public_models() -> None:
    assert set(SHAPES.values()) <= set(PUBLIC_MODELS)


def test_values(tmp_path: Path, shape: ModelShape) -> None:
    nbytes = write_checkpoint(tmp_path, shape, "cpu")
    tensors = load_file(tmp_path / "model.safetensors")
    assert nbytes == sum(tensor.nbytes for tensor in tensors.values())
    drawn = []
    for name, tensor in tensors.items():
        if "norm" in name and name.endswith("weight"):
            assert bool((tensor == 1).all()), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
        else:
            assert 0 < tensor.abs().max() < 7 * STD, name
            drawn.append(tensor.flatten())
    together = torch.cat(drawn)
    assert together.mean().abs() < STD / 50 and abs(together.std() / STD - 1) < 0.02
    assert len({float(tensor[0]) for tensor in drawn}) == len(drawn)  # no two start alike


def test_the_same_every_time(tmp_path: Path, shape: ModelShape) -> None:
    write_checkpoint(tmp_path / "first", shape, "cpu")
    write_checkpoint(tmp_path / "second", shape, "cpu")
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()


def test_float16(tmp_path: Path) -> None:
    """What the public shapes are stored in."""
    file = tmp_path / "model.safetensors"
    weight, norm = torch.zeros(300, 70, dtype=torch.float16), torch.zeros(70, dtype=torch.float16)
    save_file({"layers.0.o_proj.weight": weight, "layers.0.input_layernorm.weight": norm}, file)
    assert fill(file, "cpu", 0) == 2 * (300 * 70 + 70)
    tensors = load_file(file)
    assert tensors["layers.0.o_proj.weight"].dtype == torch.float16
    assert abs(tensors["layers.0.o_proj.weight"].float().std() / STD - 1) < 0.05
    assert bool((tensors["layers.0.input_layernorm.weight"] == 1).all())
