"""Pictures for measurements and comparisons where the user names none."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZES = ((336, 336), (500, 300), (280, 610), (900, 224))


def synthetic_image(seed: int) -> Image.Image:
    """A picture with structure at several scales: smooth colours, blocks and noise; the first is square, others are not."""
    rng = np.random.default_rng(seed)
    size = SIZES[seed % len(SIZES)]
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.int16).copy()
    for _ in range(6):
        x, y, width, height = (int(number) for number in rng.integers(16, 200, 4))
        pixels[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    pixels += rng.integers(-12, 13, pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
