"""Weights of a learned selector."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

NAMES = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")


def load_selector(file: str | Path) -> dict[str, Tensor]:
    """``selector.linear_1.weight`` [C // 2, C], ``.bias`` [C // 2], ``selector.linear_2.weight`` [2, C // 2], ``.bias`` [2].

    Args:
        file: safetensors.
    """
    from safetensors.torch import load_file

    stored: dict[str, Tensor] = load_file(file)
    return {f"selector.{name}": stored[f"selector.{name}"].float() for name in NAMES}
