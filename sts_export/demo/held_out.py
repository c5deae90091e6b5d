"""Pictures and questions that the demo model was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sts_export.demo.drawing import render
from sts_export.demo.questions import Question, ask
from sts_export.demo.world import HELD_OUT_SEEDS, sample_scene

if TYPE_CHECKING:
    from PIL.Image import Image


def held_out(index: int) -> tuple[Image, list[Question]]:
    """Picture and questions number `index` of the held-out split (at most one question per kind)."""
    seed = HELD_OUT_SEEDS[index]
    scene = sample_scene(seed)
    return render(scene), ask(scene, np.random.default_rng([seed, 1]))
