"""Vision towers as objects: a tower's file says all that depends on which kind of tower a model has.

A file of this folder with a class ``TOWER`` is a tower; its graph and its dimensions are in graphs/towers/.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sts_export.discovery import members
from sts_export.families.towers.protocol import Pictures, Tower
from sts_export.graphs.configs import VisionConfig


@cache
def towers() -> dict[str, type[Tower]]:
    """Every tower, by the ``kind`` of its dimensions."""
    found: dict[str, type[Tower]] = members(__name__, "TOWER")
    return {tower.config.kind: tower for tower in found.values()}


def open_tower(vision: VisionConfig, pictures: Pictures) -> Tower:
    """The tower of these dimensions."""
    return towers()[vision.kind](vision, pictures)


def read_vision(data: Mapping[str, Any]) -> VisionConfig:
    """A tower's dimensions from a manifest.

    Raises:
        KeyError, TypeError, ValueError: the record is damaged, or no tower is of its ``kind``.
    """
    return towers()[data["kind"]].read(data)
