"""Random pictures and prompts."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw


def random_image(seed: int, size: tuple[int, int] = (120, 100)) -> Image.Image:
    """RGB picture of the given (width, height): a gradient, filled rectangles and ellipses, a little noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    corners = rng.uniform(0, 255, (3, 3))
    pixels = corners[0] + x[..., None] * (corners[1] - corners[0]) + y[..., None] * (corners[2] - corners[0])
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(picture)
    for index in range(6):
        left, top = rng.uniform(0, 0.8, 2) * size
        right, bottom = np.minimum((left, top) + rng.uniform(0.1, 0.4, 2) * size, size)
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((float(left), float(top), float(right), float(bottom)), fill=tuple(map(int, rng.integers(0, 256, 3))))
    noisy = np.asarray(picture).astype(np.float64) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), "RGB")


def random_prompt(seed: int) -> str:
    """A short question; some have punctuation, digits or letters beyond ASCII."""
    rng = random.Random(seed)
    start = rng.choice(["What is on the", "Where is the", "How many", "Describe this", "Was zählt man hier:"])
    middle = " ".join(rng.choices(["table", "picture", "cat", "red square", "colour of 3 cups", "«été»"], k=rng.randint(1, 4)))
    return f"{start} {middle}{rng.choice('?.!')}"
