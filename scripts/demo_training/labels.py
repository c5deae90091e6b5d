"""What the vision tower is taught about every patch of a picture: dense labels, and global ones for the CLS token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sts_export.demo.drawing import BACKGROUND_ID, GLYPH_ID
from sts_export.demo.world import COLORS, IMAGE_SIZE, MAX_SAME, SHAPES, WORDS, Scene

PATCH = 14
GRID = IMAGE_SIZE // PATCH
PATCHES = GRID * GRID
# Patches so near to an object or to the word (pixels) know as much of it as those that hold it.
REACH = 8
# Classes of each channel; class 0 belongs to patches with nothing near.  The last two: how many things in the picture have
# the shape, and the color, of this one.
CHANNELS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "word": len(WORDS) + 1,
    "same shape": MAX_SAME + 1,
    "same color": MAX_SAME + 1,
}
# Regressed: painted share of 4 x 4 cells, way to the centre (y, x), diameter, centre of the thing (y, x), the patch's own
# place (y, x); the first are known from 0 for nothing to 1, the others are in units of 50 pixels.
CELLS, THING = 16, 5
GEOMETRY = CELLS + THING + 2
PAIRS = len(COLORS) * len(SHAPES)
GLOBAL = PAIRS + len(WORDS)
COLOR_NAMES = tuple(COLORS)
UNIT = 50.0


def patch_labels(scene: Scene, owner: NDArray[np.int8]) -> NDArray[np.uint8]:
    """[576, 5] uint8 by the channels of CHANNELS."""
    nearest = nearest_owner(scene, owner)
    labels = np.zeros((PATCHES, len(CHANNELS)), np.uint8)
    for index, item in enumerate(scene.objects):
        labels[nearest == index] = (
            SHAPES.index(item.shape) + 1,
            COLOR_NAMES.index(item.color) + 1,
            0,
            sum(o.shape == item.shape for o in scene.objects),
            sum(o.color == item.color for o in scene.objects),
        )
    labels[nearest == GLYPH_ID, 2] = WORDS.index(scene.label.text) + 1
    return labels


def patch_geometry(scene: Scene, owner: NDArray[np.int8]) -> NDArray[np.float16]:
    """[576, 23] float16, see GEOMETRY; zero where nothing is near, but for the patch's place."""
    nearest = nearest_owner(scene, owner)
    cells = np.linspace(0, PATCH, 5).astype(int)
    painted = (owner != BACKGROUND_ID).reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3)
    parts = [
        painted[:, :, cells[i] : cells[i + 1], cells[j] : cells[j + 1]].mean((2, 3)).reshape(-1)
        for i in range(4)
        for j in range(4)
    ]
    place = (np.argwhere(np.ones((GRID, GRID))) + 0.5) * PATCH
    thing = np.zeros((PATCHES, THING))
    for index, item in enumerate(scene.objects):
        rows, centre = nearest == index, np.array([item.y, item.x])
        thing[rows, :2] = (centre - place[rows]) / UNIT
        thing[rows, 2] = item.diameter / UNIT
        thing[rows, 3:] = (centre - IMAGE_SIZE / 2) / UNIT
    own = (place - IMAGE_SIZE / 2) / UNIT
    return np.concatenate([np.stack(parts, -1), thing, own], -1).astype(np.float16)


def picture_labels(scene: Scene) -> NDArray[np.float32]:
    """[36 + words] float32: 1 for every (color, shape) pair and for the word in the picture."""
    label = np.zeros(GLOBAL, np.float32)
    for item in scene.objects:
        label[COLOR_NAMES.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)] = 1
    label[PAIRS + WORDS.index(scene.label.text)] = 1
    return label


def nearest_owner(scene: Scene, owner: NDArray[np.int8]) -> NDArray[np.int64]:
    """[576]: the object (GLYPH_ID for the word) of which a patch holds most, else of which most is within REACH, else -1."""
    best, nearest = np.zeros(PATCHES), np.full(PATCHES, BACKGROUND_ID, np.int64)
    for index in (*range(len(scene.objects)), GLYPH_ID):
        mask = owner >= GLYPH_ID if index == GLYPH_ID else owner == index
        score = 1000 * _pixels_near(mask, 0) + _pixels_near(mask, REACH)
        rows = score > best
        best[rows], nearest[rows] = score[rows], index
    return nearest


def _pixels_near(mask: NDArray[np.bool_], reach: int) -> NDArray[np.int64]:
    """[576]: how many pixels of `mask` lie in each patch widened by `reach` pixels to all sides."""
    total = np.pad(np.pad(mask, reach).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    low = np.arange(GRID) * PATCH
    high = low + PATCH + 2 * reach
    rows = total[high] - total[low]
    near: NDArray[np.int64] = (rows[:, high] - rows[:, low]).reshape(-1)
    return near
