"""Draw one view: every token as bright as it survived."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from sts_export.analysis.kept.panels import Fate, TokenMap, hue

KEPT_FRAME = (255, 210, 0)
STAGE1_FRAME = (74, 163, 255)
_BRIGHTNESS = {Fate.DROPPED_BEFORE: 0.3, Fate.DROPPED_INSIDE: 0.65, Fate.KEPT: 1.0, Fate.MERGED: 0.3}
_FRAMES = {Fate.KEPT: KEPT_FRAME, Fate.DROPPED_INSIDE: STAGE1_FRAME}
_TINT = 0.3  # of a merged token's colour
_LEAST_SIDE, _MOST_SIDE = 6, 40
_LONGEST = 2048  # pixels of a view; only strips of tokens reach it
_LEAST_FRAMED = 5


def token_side(columns: int, rows: int, wanted: int) -> int:
    """Pixels of a token's side, so that the view's long side comes near ``wanted``."""
    longest = max(columns, rows)
    side = min(_MOST_SIDE, max(_LEAST_SIDE, wanted // longest))
    return max(1, min(side, _LONGEST // longest))


def merge_colour(number: int) -> tuple[int, int, int]:
    """RGB of the target of that number among a view's targets."""
    red, green, blue = colorsys.hls_to_rgb(hue(number) / 360, 0.55, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_tokens(view: TokenMap, side: int) -> Image.Image:
    """[columns * side, rows * side] RGB.

    Kept tokens are bright and framed in yellow, those that were dropped inside the LLM dimmed and framed in blue, the
    others dark.  Those that were merged have the colour of their target's inner frame.
    """
    size = (view.columns * side, view.rows * side)
    fates = np.array(view.fates, np.int64)
    brightness = np.array([_BRIGHTNESS[fate] for fate in sorted(Fate)], np.float32)[fates]
    tint = np.zeros((len(fates), 3), np.float32)
    targets = view.targets
    for number, sources in enumerate(targets.values()):
        tint[sources] = np.array(merge_colour(number), np.float32) * _TINT
    pixels = np.asarray(view.picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    pixels = pixels * _per_pixel(brightness[:, None], view, side) + _per_pixel(tint, view, side)
    drawn = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if side >= _LEAST_FRAMED:
        _draw_frames(ImageDraw.Draw(drawn), view, list(targets), side)
    return drawn


def _per_pixel(values: np.ndarray, view: TokenMap, side: int) -> np.ndarray:
    """[tokens, channels] -> [height, width, channels]."""
    grid = values.reshape(view.rows, view.columns, -1)
    return grid.repeat(side, axis=0).repeat(side, axis=1)


def _draw_frames(pen: ImageDraw.ImageDraw, view: TokenMap, targets: list[int], side: int) -> None:
    thick = 2 if side >= 12 else 1
    for token, fate in enumerate(view.fates):
        if fate in _FRAMES:
            pen.rectangle(_box(view, token, side, 0), outline=_FRAMES[fate], width=thick)
    for number, token in enumerate(targets):
        if side > 4 * thick:
            pen.rectangle(_box(view, token, side, thick), outline=merge_colour(number), width=thick)


def _box(view: TokenMap, token: int, side: int, inset: int) -> tuple[int, int, int, int]:
    row, column = divmod(token, view.columns)
    left, top = column * side + inset, row * side + inset
    return left, top, left + side - 1 - 2 * inset, top + side - 1 - 2 * inset
