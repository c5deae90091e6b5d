"""Weights of a learned selector."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sts_export.errors import CheckpointError

NAMES = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")


def load_selector(file: str | Path) -> dict[str, Tensor]:
    """``selector.linear_1.weight`` [C // 2, C], ``.bias`` [C // 2], ``selector.linear_2.weight`` [2, C // 2], ``.bias`` [2].

    Args:
        file: safetensors.

    Raises:
        CheckpointError: it is no safetensors file, or lacks one of them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored: dict[str, Tensor] = load_file(file)
        return {f"selector.{name}": stored[f"selector.{name}"].float() for name in NAMES}
    except (OSError, KeyError, SafetensorError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{file} holds no selector ({reason}): give its .safetensors file") from None
