"""Training scenes as conversations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.demo_training.conversations import write_conversations
from scripts.learnpruner.conversations import IMAGE, read_data
from sts_export.demo.drawing import render
from sts_export.demo.questions import ask, ask_both
from sts_export.demo.world import HELD_OUT_SEEDS, TRAIN_SEEDS, sample_scene
from sts_export.errors import OutputError


def test_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_conversations(folder, pictures=2, per_kind=2, first=5)
    data = read_data(folder)
    files = {file.name for each in data.conversations for file in each.images}
    assert files == {f"000000{seed}-{place}.png" for seed in (5, 6) for place in (0, 1)}
    for seed in (5, 6):
        scenes = sample_scene(TRAIN_SEEDS[seed]), sample_scene(TRAIN_SEEDS[seed + 1])
        pair = tuple(folder / "images" / f"{seed:07}-{place}.png" for place in (0, 1))
        for file, scene in zip(pair, scenes, strict=True):
            with Image.open(file) as picture:
                assert np.array_equal(np.asarray(picture), np.asarray(render(scene)))
        rng = np.random.default_rng([seed, 2])
        true = [*ask(scenes[0], rng, 2), *ask_both(scenes, rng, 2)]
        own = [each for each in data.conversations if each.images[0] == pair[0]]
        assert {len(each.images) for each in own} == {1, 2}
        said = {(each.turns[0].parts, each.turns[1].parts) for each in own}
        assert said == {((IMAGE,) * question.pictures + (question.text,), (question.answer,)) for question in true}
        assert all(each.images == pair[: len(each.images)] for each in own)
        assert len(own) == len(said) > 6
    with pytest.raises(OutputError):
        write_conversations(folder, pictures=1)


def test_no_held_out_scene() -> None:
    assert TRAIN_SEEDS.stop <= HELD_OUT_SEEDS.start
