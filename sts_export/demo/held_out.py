"""Pictures and questions that the demo model was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sts_export.demo.drawing import render
from sts_export.demo.questions import Question, ask, ask_both
from sts_export.demo.world import HELD_OUT_SEEDS, Scene, sample_scene

if TYPE_CHECKING:
    from PIL.Image import Image


def held_out(index: int) -> tuple[tuple[Image, Image], list[Question]]:
    """Number `index` of the held-out split: two pictures, and at most one question per kind.

    A question is about the first `Question.pictures` of the two. The second picture is the first one of the next index.
    """
    scene, following = _scenes(index)
    return (render(scene), render(following)), held_out_questions(index)


def held_out_questions(index: int) -> list[Question]:
    """The questions of `held_out(index)`; nothing is drawn."""
    scenes = _scenes(index)
    rng = np.random.default_rng([scenes[0].seed, 1])
    return [*ask(scenes[0], rng), *ask_both(scenes, rng)]


def _scenes(index: int) -> tuple[Scene, Scene]:
    first, second = (sample_scene(HELD_OUT_SEEDS[i % len(HELD_OUT_SEEDS)]) for i in (index, index + 1))
    return first, second
