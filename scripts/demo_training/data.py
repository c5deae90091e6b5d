"""Training pictures with dense labels, kept in memory-mapped files so that every stage reuses them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sts_export.demo.drawing import BACKGROUND_ID, GLYPH_ID, draw
from sts_export.demo.questions import Question, ask
from sts_export.demo.world import (
    ALPHABET,
    COLORS,
    HELD_OUT_SEEDS,
    IMAGE_SIZE,
    SHAPES,
    TRAIN_SEEDS,
    Scene,
    sample_scene,
)
from sts_export.files import new_file

PATCH = 14
GRID = IMAGE_SIZE // PATCH
# Dense label channels, each with class 0 for a background patch:
# shape, colour, character, slot of the character, is it the patch of the object's centre.
CHANNELS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "character": len(ALPHABET) + 1,
    "slot": 4,
    "centre": 2,
}
GEOMETRY = 21
# Row and column of every patch, centred, on the scale of the other geometry labels.
PLACE = np.stack([*np.mgrid[:GRID, :GRID]], -1).reshape(GRID * GRID, 2) * 8 - 92
COLOR_NAMES = tuple(COLORS)
# Global labels: which (colour, shape) pairs are there, which characters, how many of each shape and colour.
PAIRS = len(COLORS) * len(SHAPES)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@dataclass(frozen=True)
class Pictures:
    """seeds: [n]; pixels: [n, 336, 336, 3] uint8; labels: [n, 576, 5] uint8; geometry: [n, 576, 19] int8."""

    seeds: list[int]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    geometry: NDArray[np.int8]

    def batch(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized pixels [b, 3, 336, 336] float32 and all dense labels [b, 576, 5 + 21 + 2] int64."""
        pixels = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float().sub_(255 * MEAN).div_(255 * STD)
        place = np.broadcast_to(PLACE, (len(rows), *PLACE.shape))
        dense, geometry = self.labels[rows].astype(np.int64), self.geometry[rows].astype(np.int64)
        return pixels, torch.from_numpy(np.concatenate([dense, geometry, place, _halves(dense, geometry)], -1))

    def scene(self, row: int) -> Scene:
        return sample_scene(self.seeds[row])

    def presence(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Global label [b, PAIRS + letters] float32: 1 for every pair and letter in the picture."""
        label = torch.zeros(len(rows), PAIRS + len(ALPHABET))
        for i, row in enumerate(rows):
            scene = self.scene(int(row))
            for item in scene.objects:
                label[i, COLOR_NAMES.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)] = 1
            for character in scene.label.text:
                label[i, PAIRS + ALPHABET.index(character)] = 1
        return label


def make_pictures(folder: Path, split: str, count: int) -> Pictures:
    """Render `count` pictures of a split ("train" or "held_out") into `folder`, or map those already there."""
    seeds = [(TRAIN_SEEDS if split == "train" else HELD_OUT_SEEDS)[i] for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{split}-{count}-{part}.npy" for part in ("pixels", "labels", "geometry")]
    if not files[-1].exists():
        pixels = np.lib.format.open_memmap(files[0], "w+", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
        labels = np.zeros((count, GRID * GRID, len(CHANNELS)), np.uint8)
        geometry = np.zeros((count, GRID * GRID, GEOMETRY - 2), np.int8)
        with ProcessPoolExecutor(2) as pool:
            for i, parts in enumerate(pool.map(_one, seeds, chunksize=32)):
                pixels[i], labels[i], geometry[i] = parts
        pixels.flush()
        for file, array in ((files[1], labels), (files[2], geometry)):
            with new_file(file) as stream:
                np.save(stream, array)
    return Pictures(seeds, np.load(files[0], mmap_mode="r"), np.load(files[1]), np.load(files[2]))


def rows_forever(count: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Shuffled batches of row numbers, epoch after epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from order[: count - count % batch].reshape(-1, batch)


def _halves(dense: NDArray[np.int64], geometry: NDArray[np.int64]) -> NDArray[np.int64]:
    """[b, 576, 2]: for patches of an object, in which half its centre lies: 1 top, 2 bottom; 1 left, 2 right; else 0."""
    row, column = np.divmod(np.arange(GRID * GRID), GRID)
    centre = geometry[..., 16:18] + np.stack([row, column], -1) * PATCH + PATCH // 2
    return np.where(dense[..., :1] > 0, 1 + (centre >= IMAGE_SIZE // 2), 0)


# Questions of every kind in one packed sequence: the harder a kind, the more often it is practised.
PRACTICE = {"presence": 5, "count": 1, "shape": 6, "position": 10, "color": 3, "reading": 1}


def ask_many(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions for one packed training sequence."""
    left, asked = dict(PRACTICE), []
    for question in dict.fromkeys(ask(scene, rng, per_kind=max(PRACTICE.values()))):
        if left[question.kind]:
            left[question.kind] -= 1
            asked.append(question)
    return asked


def _one(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int8]]:
    scene = sample_scene(seed)
    drawing = draw(scene)
    return drawing.pixels, dense_labels(scene, drawing.owner), dense_geometry(scene, drawing.owner)


def dense_geometry(scene: Scene, owner: NDArray[np.int8]) -> NDArray[np.int8]:
    """Per patch [576, 19]: which share of its 4 x 4 cells is painted (0 to 100), way to the centre and size of its object.

    Shapes cannot be told from one patch: to predict these the tower must see outlines and join patches to objects.
    """
    cells = np.linspace(0, PATCH, 5).astype(int)
    patches = (owner != BACKGROUND_ID).reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3)
    geometry = np.zeros((GRID, GRID, GEOMETRY - 2), np.int8)
    for i in range(4):
        for j in range(4):
            cell = patches[:, :, cells[i] : cells[i + 1], cells[j] : cells[j + 1]]
            geometry[:, :, 4 * i + j] = np.rint(100 * cell.mean((2, 3)))
    patch_owner = owner.reshape(GRID, PATCH, GRID, PATCH).max((1, 3))
    middle = np.arange(GRID) * PATCH + PATCH // 2
    for index, item in enumerate(scene.objects):
        rows, columns = np.nonzero(patch_owner == index)
        geometry[rows, columns, 16] = np.clip(item.y - middle[rows], -100, 100)
        geometry[rows, columns, 17] = np.clip(item.x - middle[columns], -100, 100)
        geometry[rows, columns, 18] = item.diameter
    return geometry.reshape(GRID * GRID, GEOMETRY - 2)


def dense_labels(scene: Scene, owner: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Labels [576, 5] of every patch: those of the object that owns most of it, if it owns a tenth."""
    patches = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    labels = np.zeros((GRID * GRID, len(CHANNELS)), np.uint8)
    best = np.full(GRID * GRID, PATCH * PATCH // 10)
    for index, item in enumerate(scene.objects):
        covered = (patches == index).sum(1)
        rows = covered > best
        best[rows] = covered[rows]
        labels[rows] = (SHAPES.index(item.shape) + 1, COLOR_NAMES.index(item.color) + 1, 0, 0, 0)
        labels[item.y // PATCH * GRID + item.x // PATCH, 4] = 1
    for slot, character in enumerate(scene.label.text):
        covered = (patches == GLYPH_ID + slot).sum(1)
        rows = covered > best
        best[rows] = covered[rows]
        labels[rows] = (0, 0, ALPHABET.index(character) + 1, slot + 1, 0)
    return labels
