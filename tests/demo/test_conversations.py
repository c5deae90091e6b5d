"""Training scenes as conversations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.demo_training.conversations import write_conversations
from scripts.learnpruner.conversations import IMAGE, read_data
from sts_export.demo.drawing import render
from sts_export.demo.questions import ask
from sts_export.demo.world import HELD_OUT_SEEDS, TRAIN_SEEDS, sample_scene
from sts_export.errors import OutputError


def test_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_conversations(folder, pictures=2, per_kind=2, first=5)
    data = read_data(folder)
    assert {file.name for each in data.conversations for file in each.images} == {"0000005-0.png", "0000006-0.png"}
    for seed in (5, 6):
        scene = sample_scene(TRAIN_SEEDS[seed])
        file = folder / "images" / f"{seed:07}-0.png"
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(render(scene)))
        true = ask(scene, np.random.default_rng([seed, 2]), 2)
        own = [each for each in data.conversations if each.images == (file,)]
        said = {(each.turns[0].parts, each.turns[1].parts) for each in own}
        assert said == {((IMAGE, question.text), (question.answer,)) for question in true}
        assert len(own) == len(said) > 6
    with pytest.raises(OutputError):
        write_conversations(folder, pictures=1)


def test_no_held_out_scene() -> None:
    assert TRAIN_SEEDS.stop <= HELD_OUT_SEEDS.start
