"""Features of the frozen tower, computed once for all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from scripts.demo_training.labels import GRID, PATCHES
from scripts.demo_training.model import VISION_WIDTH
from scripts.demo_training.pictures import Pictures
from scripts.demo_training.tower import vision_features

BATCH = 16


@torch.no_grad()
def make_features(model: LlavaForConditionalGeneration, pictures: Pictures, folder: Path) -> NDArray[np.float16]:
    """[n, 576, width] float16, in a file of `folder`; a stopped run goes on where it was."""
    count = len(pictures)
    file, progress = (folder / f"{pictures.split}-{count}-features.{end}" for end in ("npy", "done"))
    done = int(progress.read_text()) if progress.exists() else 0
    if not done:
        np.lib.format.open_memmap(file, "w+", np.float16, (count, PATCHES, VISION_WIDTH)).flush()
    features: np.memmap[Any, np.dtype[np.float16]] = np.load(file, mmap_mode="r+")
    for first in tqdm(range(done, count, BATCH), f"features of {pictures.split}"):
        rows = np.arange(first, min(first + BATCH, count))
        features[rows] = vision_features(model, pictures.batch(rows))[:, 1:].half().cpu().numpy()
        if first // BATCH % 50 == 0 or rows[-1] == count - 1:
            features.flush()
            progress.write_text(str(rows[-1] + 1))
    return features


def pooled(features: NDArray[np.float16], rows: NDArray[np.int64], cell: tuple[int, int]) -> Tensor:
    """Features [b, 576 / (h · w), width] float32 of a coarser grid: means over cells of h x w patches."""
    taken = torch.from_numpy(features[rows]).to(torch.get_default_device()).float()
    if cell == (1, 1):
        return taken
    grid = taken.transpose(1, 2).reshape(len(rows), -1, GRID, GRID)
    return nn.functional.avg_pool2d(grid, cell).flatten(2).transpose(1, 2)
