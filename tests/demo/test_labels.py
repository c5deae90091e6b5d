"""Labels of patches, against a slow reading of their definition."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.demo_training.labels import (
    CELLS,
    CHANNELS,
    GEOMETRY,
    GLOBAL,
    GRID,
    PAIRS,
    PATCH,
    PATCHES,
    REACH,
    THING,
    UNIT,
    patch_geometry,
    patch_labels,
    picture_labels,
)
from sts_export.demo.drawing import GLYPH_ID, draw
from sts_export.demo.world import COLORS, IMAGE_SIZE, SHAPES, WORDS, Scene, sample_scene


def owner_of(scene: Scene, patch: int) -> int | None:
    """The object's number, GLYPH_ID for the word, None for nothing, by looping over pixels."""
    owner = draw(scene).owner
    top, left = patch // GRID * PATCH, patch % GRID * PATCH
    best: tuple[int, int, int] | None = None
    for index in (*range(len(scene.objects)), GLYPH_ID):
        inside = near = 0
        for y in range(max(0, top - REACH), min(IMAGE_SIZE, top + PATCH + REACH)):
            for x in range(max(0, left - REACH), min(IMAGE_SIZE, left + PATCH + REACH)):
                own = owner[y, x] == index or (index == GLYPH_ID and owner[y, x] >= GLYPH_ID)
                near += own
                inside += own and top <= y < top + PATCH and left <= x < left + PATCH
        if near and (best is None or (inside, near) > best[:2]):
            best = inside, near, index
    return None if best is None else best[2]


@pytest.mark.parametrize("seed", [3, 8])
def test_patches(seed: int) -> None:
    scene = sample_scene(seed)
    owner = draw(scene).owner
    labels, geometry = patch_labels(scene, owner), patch_geometry(scene, owner).astype(float)
    assert labels.shape == (PATCHES, len(CHANNELS))
    assert geometry.shape == (PATCHES, GEOMETRY)
    assert (labels < np.array(list(CHANNELS.values()))).all()
    checked = np.random.default_rng(seed).permutation(PATCHES)[:60]
    for patch in (*checked, *np.flatnonzero(labels[:, 0])[:20]):
        number = owner_of(scene, int(patch))
        place = np.array([patch // GRID + 0.5, patch % GRID + 0.5]) * PATCH
        np.testing.assert_allclose(geometry[patch, -2:] * UNIT, place - IMAGE_SIZE / 2, atol=0.2)
        if number is None or number == GLYPH_ID:
            word = 0 if number is None else WORDS.index(scene.label.text) + 1
            assert labels[patch].tolist() == [0, 0, word, 0, 0]
            assert not geometry[patch, CELLS : CELLS + THING].any()
            continue
        item = scene.objects[number]
        alike = sum(o.shape == item.shape for o in scene.objects), sum(o.color == item.color for o in scene.objects)
        expected = [SHAPES.index(item.shape) + 1, list(COLORS).index(item.color) + 1, 0, *alike]
        assert labels[patch].tolist() == expected
        centre = np.array([item.y, item.x])
        thing = [*(centre - place), item.diameter, *(centre - IMAGE_SIZE / 2)]
        np.testing.assert_allclose(geometry[patch, CELLS : CELLS + THING] * UNIT, thing, atol=0.2)


def test_pictures() -> None:
    scene = sample_scene(4)
    label = picture_labels(scene)
    assert label.shape == (GLOBAL,)
    pairs = {(item.color, item.shape) for item in scene.objects}
    assert label[:PAIRS].sum() == len(pairs)
    for color, shape in pairs:
        assert label[list(COLORS).index(color) * len(SHAPES) + SHAPES.index(shape)] == 1
    assert np.flatnonzero(label[PAIRS:]).tolist() == [WORDS.index(scene.label.text)]
