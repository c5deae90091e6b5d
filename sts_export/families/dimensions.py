"""Limits of dimensions: graphs for numbers outside them would be nonsense or take forever to build."""

from __future__ import annotations

from sts_export.graphs.configs import VisionConfig

LARGE = 1 << 24


def between(name: str, value: int, limit: int) -> None:
    """Raises ValueError for a number that is not from 1 to ``limit``."""
    if not 1 <= value <= limit:
        raise ValueError(f"{name} {value} is not between 1 and {limit}")


def small(name: str, number: float) -> None:
    """Raises ValueError for an epsilon that is not from 0 to below 1."""
    if not 0 <= number < 1:
        raise ValueError(f"{name} {number} is not between 0 and 1")


def check_layers(vision: VisionConfig, num_layers: int) -> None:
    """What the transformer layers of all vision towers have.

    Raises:
        ValueError: a number that no tower has, or heads that do not divide the width.
    """
    for name in ("hidden_size", "intermediate_size", "num_heads"):
        between(f"vision {name}", getattr(vision, name), LARGE)
    between("num_channels", vision.num_channels, 16)
    between("vision layers", num_layers, 1024)
    if vision.hidden_size % vision.num_heads:
        raise ValueError("vision heads do not divide evenly")
