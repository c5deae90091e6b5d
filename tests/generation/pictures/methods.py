"""Ways of pruning that differ in what the choice of stage 1 follows from, and in what the selector gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sts_export import Pipeline
from tests.support.pipelines import Spy

METHODS: dict[str, dict[str, Any]] = {
    "sts": {"keep": (20, 8)},
    "sts, other settings": {"keep": (20, 8), "stage1": "repulsion:anchor=first"},
    "divprune": {"method": "divprune", "budget": "12"},
    "none": {"method": "none"},
    "random": {"method": "random", "budget": "12"},
    "cdpruner": {"stage1": "cdpruner", "stage2": "keep-all", "budget": "12"},  # reads the question
    "visionzip": {"method": "visionzip", "budget": "12"},  # merges, and keeps CLS tokens
}
Plain = Callable[[str], Pipeline]
Cached = Callable[..., tuple[Pipeline, Spy]]
