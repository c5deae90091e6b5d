"""Which files are a selector's weights, and what is said of others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.checkpoints.selector_weights import open_selector_weights
from sts_export.errors import RequestError
from sts_export.pruning.stage1.learned import Learned
from sts_export.testing.checkpoints import write_random_selector

WIDTH = 16


def refusal(file: Path | str) -> str:
    with pytest.raises(RequestError) as caught:
        open_selector_weights(file, Learned().own_weights, WIDTH)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(file: Path, **tensors: Any) -> Path:
    """The selector with other tensors; None leaves one out."""
    both = {**load_file(write_random_selector(file, WIDTH)), **{f"selector.{name}": value for name, value in tensors.items()}}
    save_file({name: value for name, value in both.items() if value is not None}, file)
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_selector(tmp_path: Path, dtype: torch.dtype) -> None:
    file = write_random_selector(tmp_path / "selector.safetensors", WIDTH, dtype=dtype)
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    found = open_selector_weights(link, Learned().own_weights, WIDTH)
    assert found.file == file.resolve() and found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {name: entry.shape for name, entry in found.tensors.items()} == Learned().own_weights(WIDTH)


def test_another_width_is_said(tmp_path: Path) -> None:
    message = refusal(write_random_selector(tmp_path / "selector.safetensors", 24))
    assert "width 24" in message and "have 16" in message and "trained for this model" in message


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"linear_2.bias": None}, "lacks selector.linear_2.bias"),
        ({"linear_3.bias": torch.zeros(2)}, "has selector.linear_3.bias, which no selector has"),
        ({"linear_2.bias": torch.zeros(3)}, "selector.linear_2.bias in {file} is [3] instead of [2]"),
        ({"linear_2.bias": torch.tensor([0.0, float("nan")])}, "selector.linear_2.bias in {file} holds NaN or infinity"),
        ({"linear_1.weight": torch.full((8, 16), float("inf"), dtype=torch.float16)}, "holds NaN or infinity"),
        ({"linear_2.bias": torch.zeros(2, dtype=torch.float64)}, "is F64; store the selector as float32"),
    ],
)
def test_wrong_tensors(tmp_path: Path, tensors: dict[str, Any], expected: str) -> None:
    file = changed(tmp_path / "selector.safetensors", **tensors)
    assert expected.format(file=file.resolve()) in refusal(file)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_a_pickle_is_never_loaded(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "selector.pt"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=not legacy)
    assert "is a pickle, which is never loaded; save the selector as safetensors" in refusal(file)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "are no file; check the path given with --selector-weights" in refusal(tmp_path / "absent.safetensors")
    assert "are no file" in refusal(tmp_path)
    assert "an empty path" in refusal("")
    file = write_random_selector(tmp_path / "selector.safetensors", WIDTH)
    file.write_bytes(file.read_bytes()[:-4])
    assert "is truncated" in refusal(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git-lfs pointer" in refusal(file)
    file.write_bytes(b"")
    assert "not a complete safetensors file" in refusal(file)
