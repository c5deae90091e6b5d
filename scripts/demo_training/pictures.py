"""Training pictures with their labels, kept in memory-mapped files: once all are drawn, no run draws them again."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from scripts.demo_training.labels import (
    CHANNELS,
    GEOMETRY,
    PATCHES,
    patch_geometry,
    patch_labels,
    picture_labels,
)
from sts_export.demo.drawing import draw
from sts_export.demo.world import HELD_OUT_SEEDS, IMAGE_SIZE, TRAIN_SEEDS, Scene, sample_scene

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
SPLITS = {"train": TRAIN_SEEDS, "held_out": HELD_OUT_SEEDS}


@dataclass(frozen=True)
class Pictures:
    """pixels: [n, 336, 336, 3] uint8; labels: [n, 576, 5] uint8; geometry: [n, 576, 23] float16."""

    split: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    geometry: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """Normalized pixels [b, 3, 336, 336] float32."""
        pixels = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float().sub_(255 * MEAN).div_(255 * STD)
        return _here(pixels)

    def dense(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Patch labels [b, 576, 5] int64 and geometry [b, 576, 23] float32."""
        labels, geometry = self.labels[rows].astype(np.int64), self.geometry[rows].astype(np.float32)
        return _here(torch.from_numpy(labels)), _here(torch.from_numpy(geometry))

    def scene(self, row: int) -> Scene:
        return sample_scene(SPLITS[self.split][row])

    def present(self, rows: NDArray[np.int64]) -> Tensor:
        """Global labels [b, 36 + words] float32."""
        return _here(torch.from_numpy(np.stack([picture_labels(self.scene(int(row))) for row in rows])))


def _here(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_default_device())


def make_pictures(folder: Path, split: str, count: int) -> Pictures:
    """Draw the first `count` pictures of a split ("train" or "held_out") into `folder`, or map those already there."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "pixels": (np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE, 3)),
        "labels": (np.uint8, (count, PATCHES, len(CHANNELS))),
        "geometry": (np.float16, (count, PATCHES, GEOMETRY)),
    }
    files = {part: folder / f"{split}-{count}-{part}.npy" for part in shapes}
    done = folder / f"{split}-{count}.done"
    if not done.exists():
        arrays = [np.lib.format.open_memmap(files[part], "w+", *shapes[part]) for part in shapes]
        with ProcessPoolExecutor() as pool:
            drawn = pool.map(_one, SPLITS[split][:count], chunksize=32)
            for i, parts in enumerate(tqdm(drawn, f"drawing {split}", count)):
                for array, part in zip(arrays, parts, strict=True):
                    array[i] = part
        for array in arrays:
            array.flush()
        done.touch()
    return Pictures(split, *(np.load(file, mmap_mode="r") for file in files.values()))


def _one(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]:
    scene = sample_scene(seed)
    drawing = draw(scene)
    return drawing.pixels, patch_labels(scene, drawing.owner), patch_geometry(scene, drawing.owner)


def batch_rows(count: int, batch: int, seed: int, number: int) -> NDArray[np.int64]:
    """Row numbers [batch] of batch `number`: shuffled, epoch after epoch."""
    size = count // batch
    order = np.random.default_rng([seed, number // size]).permutation(count)
    return order[number % size * batch :][:batch]
