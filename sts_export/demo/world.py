"""The demo world: a textured picture with a few coloured shapes and one written word.

A scene is a pure function of its seed; `drawing.py` turns it into pixels, `questions.py` into questions, and `held_out.py`
picks the ones that are reported.
Only numpy, PIL and the standard library are needed, so that evaluation runs wherever a bundle runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 336
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "yellow": (240, 214, 40),
    "green": (36, 168, 62),
    "cyan": (40, 208, 220),
    "blue": (38, 72, 222),
    "purple": (176, 52, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
# What may be written in a picture: every word is one token of the demo's tokenizer.
_WORDS = """
ANT APE ARM ART CAP CAR CAT CUP EAR EEL ELF ELK ELM FAN FIN FIR FLY FOX FUR HAM HAT HEN HIP INK IVY KIT LIP
MAP MAT MIX MOP NET NUT OAK OIL OWL PAN PEN PIE PIN POT RAM SEA SKY SUN TEA TIN TOE TOY VAN WAX ZOO
ARCH CAKE CAVE CLAY COAT COIN CORN CROW FARM FERN FIRE FISH FORK HAWK HILL KITE LAKE LAMP LEAF LILY LION
MASK MILK MINT MOON MOTH NAIL NEST OVEN PEAR PINE RAIN RICE ROSE SALT SHIP SILK SNOW SWAN TREE VASE WOLF
"""
WORDS = tuple(_WORDS.split())
BACKGROUNDS = ("noise", "gradient", "stripes", "checks")

# Training draws from the first range, everything that is reported from the second.
TRAIN_SEEDS = range(1_000_000)
HELD_OUT_SEEDS = range(1_000_000_000, 1_000_100_000)

MIN_OBJECTS, MAX_OBJECTS = 3, 6
MIN_DIAMETER, MAX_DIAMETER = 28, 72
MAX_SAME = 4  # no question has an answer above four
GLYPH_WIDTH, GLYPH_HEIGHT, GLYPH_GAP = 22, 34, 6
MARGIN, GAP = 4, 8


@dataclass(frozen=True)
class Object:
    """One coloured shape; (x, y) is its centre in pixels."""

    shape: str
    color: str
    x: int
    y: int
    diameter: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Label:
    """The word in the picture; (x, y) is its top left corner in pixels."""

    text: str
    x: int
    y: int


@dataclass(frozen=True)
class Background:
    """A muted texture: `first` and `second` are its colours, `grain` its noise in grey levels."""

    kind: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    angle: float
    period: int
    grain: float


@dataclass(frozen=True)
class Scene:
    """Everything there is to know about a picture."""

    seed: int
    background: Background
    objects: tuple[Object, ...]
    label: Label


def sample_scene(seed: int) -> Scene:
    """The scene of a seed: any non-negative integer, see TRAIN_SEEDS and HELD_OUT_SEEDS."""
    rng = np.random.default_rng(seed)
    background = _sample_background(rng)
    text = WORDS[int(rng.integers(len(WORDS)))]
    boxes: list[tuple[int, int, int, int]] = []
    width = len(text) * (GLYPH_WIDTH + GLYPH_GAP) - GLYPH_GAP
    x, y = _free_corner(rng, boxes, width, GLYPH_HEIGHT) or (MARGIN, MARGIN)
    label = Label(text, x, y)
    boxes.append((x, y, x + width, y + GLYPH_HEIGHT))

    objects: list[Object] = []
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    for shape, color in _sample_kinds(rng, count):
        # Log-uniform: most objects cover few patches, so few of the visual tokens carry the answer.
        diameter = round(float(np.exp(rng.uniform(np.log(MIN_DIAMETER), np.log(MAX_DIAMETER)))))
        corner = _free_corner(rng, boxes, diameter, diameter)
        if corner is None:
            continue
        x, y = corner
        boxes.append((x, y, x + diameter, y + diameter))
        rgb = _jitter(rng, COLORS[color], 14)
        objects.append(Object(shape, color, x + diameter // 2, y + diameter // 2, diameter, rgb))
    return Scene(seed, background, tuple(objects), label)


def _sample_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(shape, colour) pairs; half of the scenes repeat one shape or one colour, so that counts above one are common."""
    shapes = [str(s) for s in rng.choice(SHAPES, size=count)]
    colors = [str(c) for c in rng.choice(list(COLORS), size=count)]
    theme = rng.random()
    repeats = int(rng.integers(2, MAX_SAME + 1))
    if theme < 0.35:
        shapes[:repeats] = [shapes[0]] * min(repeats, count)
    elif theme < 0.6:
        colors[:repeats] = [colors[0]] * min(repeats, count)
    kept: list[tuple[str, str]] = []
    for shape, color in zip(shapes, colors, strict=True):
        same_shape = sum(s == shape for s, _ in kept)
        same_color = sum(c == color for _, c in kept)
        if max(same_shape, same_color) < MAX_SAME:
            kept.append((shape, color))
    return kept


def _free_corner(
    rng: np.random.Generator, boxes: list[tuple[int, int, int, int]], width: int, height: int
) -> tuple[int, int] | None:
    """A place for a box that keeps GAP pixels from all others, or None after many tries."""
    for _ in range(60):
        x = int(rng.integers(MARGIN, IMAGE_SIZE - MARGIN - width))
        y = int(rng.integers(MARGIN, IMAGE_SIZE - MARGIN - height))
        if all(x + width + GAP <= x0 or x1 + GAP <= x or y + height + GAP <= y0 or y1 + GAP <= y for x0, y0, x1, y1 in boxes):
            return x, y
    return None


def _sample_background(rng: np.random.Generator) -> Background:
    grey = float(rng.uniform(70, 130))
    first = _jitter(rng, (int(grey),) * 3, 12)
    second = _jitter(rng, (int(grey + rng.uniform(-22, 22)),) * 3, 12)
    return Background(
        kind=str(rng.choice(BACKGROUNDS)),
        first=first,
        second=second,
        angle=float(rng.uniform(0, np.pi)),
        period=int(rng.integers(24, 80)),
        grain=float(rng.uniform(1, 5)),
    )


def _jitter(rng: np.random.Generator, rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in rgb)
    return red, green, blue
