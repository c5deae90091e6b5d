"""Pixels of a scene, from signed distances: no font and no rasterizer, so no library version changes a picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sts_export.demo.world import GLYPH_GAP, GLYPH_HEIGHT, GLYPH_WIDTH, IMAGE_SIZE, Background, Object, Scene

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]

STROKE = 5.0
INK = (244, 244, 244)
BACKGROUND_ID = -1
GLYPH_ID = 100  # owner of the first character's pixels; the next characters follow

# Strokes of each character as polylines in a unit box, y downwards.
GLYPHS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "A": (((0, 1), (0.5, 0), (1, 1)), ((0.25, 0.6), (0.75, 0.6))),
    "C": (((1, 0), (0, 0), (0, 1), (1, 1)),),
    "E": (((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 0.5), (0.8, 0.5))),
    "F": (((1, 0), (0, 0), (0, 1)), ((0, 0.5), (0.8, 0.5))),
    "H": (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),
    "I": (((0.5, 0), (0.5, 1)),),
    "K": (((0, 0), (0, 1)), ((1, 0), (0, 0.5), (1, 1))),
    "L": (((0, 0), (0, 1), (1, 1)),),
    "M": (((0, 1), (0, 0), (0.5, 0.55), (1, 0), (1, 1)),),
    "N": (((0, 1), (0, 0), (1, 1), (1, 0)),),
    "O": (((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)),),
    "P": (((0, 1), (0, 0), (1, 0), (1, 0.5), (0, 0.5)),),
    "R": (((0, 1), (0, 0), (1, 0), (1, 0.5), (0, 0.5)), ((0.4, 0.5), (1, 1))),
    "S": (((1, 0), (0, 0), (0, 0.5), (1, 0.5), (1, 1), (0, 1)),),
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "U": (((0, 0), (0, 1), (1, 1), (1, 0)),),
    "V": (((0, 0), (0.5, 1), (1, 0)),),
    "W": (((0, 0), (0.2, 1), (0.5, 0.45), (0.8, 1), (1, 0)),),
    "X": (((0, 0), (1, 1)), ((1, 0), (0, 1))),
    "Y": (((0, 0), (0.5, 0.5), (1, 0)), ((0.5, 0.5), (0.5, 1))),
    "Z": (((0, 0), (1, 0), (0, 1), (1, 1)),),
}


@dataclass(frozen=True)
class Drawing:
    """pixels: [336, 336, 3] uint8; owner: [336, 336] int8, the object (or character) each pixel belongs to."""

    pixels: NDArray[np.uint8]
    owner: NDArray[np.int8]


def draw(scene: Scene) -> Drawing:
    """Paint background, objects and word."""
    canvas = _background(scene.background, np.random.default_rng([scene.seed, 2]))
    owner = np.full((IMAGE_SIZE, IMAGE_SIZE), BACKGROUND_ID, np.int8)
    for index, item in enumerate(scene.objects):
        left, top = item.x - item.diameter // 2 - 1, item.y - item.diameter // 2 - 1
        distance = _shape_distance(item, left, top, item.diameter + 2)
        _paint(canvas, owner, left, top, distance, item.rgb, index)
    for slot, character in enumerate(scene.label.text):
        left = scene.label.x + slot * (GLYPH_WIDTH + GLYPH_GAP)
        _paint(canvas, owner, left, scene.label.y, _glyph_distance(character), INK, GLYPH_ID + slot)
    return Drawing(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), owner)


def render(scene: Scene) -> Image:
    """The picture of a scene: RGB, IMAGE_SIZE square, identical on every machine."""
    from PIL import Image

    return Image.fromarray(draw(scene).pixels)


def _paint(
    canvas: Floats,
    owner: NDArray[np.int8],
    left: int,
    top: int,
    distance: Floats,
    rgb: tuple[int, int, int],
    identity: int,
) -> None:
    height, width = distance.shape
    rows, columns = slice(top, top + height), slice(left, left + width)
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    canvas[rows, columns] += alpha * (np.array(rgb, np.float32) - canvas[rows, columns])
    owner[rows, columns][distance < 0] = identity


def _grid(left: float, top: float, width: int, height: int) -> tuple[Floats, Floats]:
    """x [1, width] and y [height, 1] of pixel centres."""
    x = (np.arange(width, dtype=np.float32) + np.float32(left + 0.5))[None, :]
    y = (np.arange(height, dtype=np.float32) + np.float32(top + 0.5))[:, None]
    return x, y


def _shape_distance(item: Object, left: int, top: int, side: int) -> Floats:
    """Signed distance in pixels to the outline, negative inside (exact near the edges, which is what shows)."""
    x, y = _grid(left - item.x, top - item.y, side, side)
    r = np.float32(item.diameter / 2)
    if item.shape == "circle":
        return np.hypot(x, y) - r
    if item.shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * r
    if item.shape == "diamond":
        return np.asarray((np.abs(x) / 0.72 + np.abs(y) - r) * np.float32(0.58), np.float32)
    if item.shape == "cross":
        across = np.maximum(np.abs(x) - r, np.abs(y) - 0.3 * r)
        along = np.maximum(np.abs(x) - 0.3 * r, np.abs(y) - r)
        return np.minimum(across, along)
    if item.shape == "triangle":
        # Apex (0, -r), base from (-r, 0.8 r) to (r, 0.8 r).
        slanted = (np.abs(x) * 1.8 - (y + r)) / np.float32(np.hypot(1.8, 1.0))
        return np.maximum(slanted, y - 0.8 * r)
    return _star_distance(x, y, r)


def _star_distance(x: Floats, y: Floats, r: np.float32) -> Floats:
    """Five points: fold the angle to half a point, then one straight edge from tip to notch."""
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    notch_u, notch_v = 0.42 * r * np.cos(fifth / 2), 0.42 * r * np.sin(fifth / 2)
    edge_u, edge_v = notch_u - r, notch_v
    length = np.hypot(edge_u, edge_v)
    distance: Floats = (((u - r) * edge_v - v * edge_u) / length).astype(np.float32)
    return distance


def _glyph_distance(character: str) -> Floats:
    half = STROKE / 2
    x, y = _grid(0, 0, GLYPH_WIDTH, GLYPH_HEIGHT)
    scale = np.array([GLYPH_WIDTH - STROKE, GLYPH_HEIGHT - STROKE], np.float32)
    nearest = np.full((GLYPH_HEIGHT, GLYPH_WIDTH), np.inf, np.float32)
    for polyline in GLYPHS[character]:
        points = np.array(polyline, np.float32) * scale + half
        for (ax, ay), (bx, by) in pairwise(points):
            dx, dy = bx - ax, by - ay
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - t * dx, y - ay - t * dy))
    return nearest - np.float32(half)


def _background(background: Background, rng: np.random.Generator) -> Floats:
    x, y = _grid(0, 0, IMAGE_SIZE, IMAGE_SIZE)
    along = x * np.float32(np.cos(background.angle)) + y * np.float32(np.sin(background.angle))
    if background.kind == "noise":  # soft blotches: a coarse random grid, enlarged
        coarse = rng.random((12, 12), np.float32)
        mix = np.kron(coarse, np.ones((28, 28), np.float32))
    elif background.kind == "gradient":
        mix = (along - along.min()) / (along.max() - along.min())
    elif background.kind == "stripes":
        mix = 0.5 + 0.5 * np.sin(along * np.float32(2 * np.pi / background.period))
    else:
        mix = ((x // background.period + y // background.period) % 2).astype(np.float32)
    first, second = (np.array(rgb, np.float32) for rgb in (background.first, background.second))
    # Grain of 3 x 3 pixels, not 1 x 1: the pictures stay small as PNG.
    grain = np.kron(rng.standard_normal((112, 112), np.float32), np.ones((3, 3), np.float32))
    painted: Floats = first + mix[..., None] * (second - first) + grain[..., None] * np.float32(background.grain)
    return painted
