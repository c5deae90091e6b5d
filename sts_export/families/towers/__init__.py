"""Vision towers as objects: a tower's file says all that depends on which kind of tower a model has.

A file of this folder with a class ``TOWER`` is a tower; its graph and its dimensions are in graphs/towers/.
"""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Any

from sts_export.discovery import members
from sts_export.families.towers.protocol import Pictures, Tower
from sts_export.graphs.configs import VisionConfig
from sts_export.json_records import Form


@cache
def towers() -> dict[str, type[Tower]]:
    """Every tower, by the ``kind`` of its dimensions."""
    found: dict[str, type[Tower]] = members(__name__, "TOWER")
    return {tower.config.kind: tower for tower in found.values()}


def open_tower(vision: VisionConfig, pictures: Pictures) -> Tower:
    """The tower of these dimensions."""
    return towers()[vision.kind](vision, pictures)


def _dimensions() -> Any:
    """Those of any tower; their ``kind`` tells them apart."""
    return reduce(or_, (tower.config for tower in towers().values()))


VISION_FORM = Form(_dimensions)
