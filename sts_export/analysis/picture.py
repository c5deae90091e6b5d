"""Draw which visual tokens survived each stage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from sts_export.errors import OutputError
from sts_export.files import new_file
from sts_export.generation.pipeline import Pipeline
from sts_export.media.images import load_image
from sts_export.media.prepared import View
from sts_export.paths import user_path

if TYPE_CHECKING:
    from sts_export.generation.result import GenerationResult

_SCALE = 2
_GAP = 8  # pixels between pictures
_DROPPED = 0.25  # brightness left of a token dropped before the LLM
_STAGE1 = 0.65  # and of one dropped inside it
_FRAME = (255, 210, 0)


def save_kept_picture(
    bundle: str | Path,
    images: Sequence[str],
    prompt: str,
    output: str,
    max_new_tokens: int | None = None,
    threads: int | None = None,
    backend: str | None = None,
    plugins: str | None = None,
) -> GenerationResult:
    """Answer the prompt and write what the model saw, the pictures (and of tiled ones, the whole and the tiles) in a row.

    Survivors of stage 2 are bright and framed, those of stage 1 dimmed, the rest dark.

    Raises:
        OutputError: the picture cannot be written.
    """
    target = user_path(output)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(f"cannot write a picture to {output}: use a name that ends in .png, .jpg or .webp")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {output}: {target.parent} is not a folder; choose another --output")
    if target.resolve() in [user_path(image).resolve() for image in images]:
        raise OutputError(f"{output} is the picture itself; choose another --output")
    pipeline = Pipeline(bundle, threads=threads, backend=backend, plugins=plugins)
    pictures = [load_image(image) for image in images]
    result = pipeline.generate(prompt, pictures, max_new_tokens=max_new_tokens)
    drawn, first = [], 0
    for picture, kept1 in zip(pictures, result.kept_stage1, strict=True):
        kept2 = {token - first for token in result.kept_stage2}
        drawn += [draw_kept(view, set(kept1), kept2) for view in pipeline.seen(picture)]
        first += pipeline.prepared(picture).num_tokens
    try:
        with new_file(target) as stream:
            _in_a_row(drawn).save(stream, Image.registered_extensions()[target.suffix.lower()])
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}; choose another --output") from None
    return result


def draw_kept(view: View, kept_stage1: Collection[int], kept_stage2: Collection[int]) -> Image.Image:
    """The view's picture with every token as bright as it survived; numbers outside the view are ignored."""
    brightness = np.full((view.rows, view.columns), _DROPPED, np.float32)
    inside = range(view.first, view.first + brightness.size)
    for kept, value in ((kept_stage1, _STAGE1), (kept_stage2, 1.0)):
        brightness.reshape(-1)[[token - view.first for token in kept if token in inside]] = value
    width, height = view.picture.width // view.columns, view.picture.height // view.rows  # of a token
    per_pixel = np.kron(brightness, np.ones((height, width), np.float32))[..., None]
    pixels = np.asarray(view.picture, np.float32)[: per_pixel.shape[0], : per_pixel.shape[1]] * per_pixel
    size = (pixels.shape[1] * _SCALE, pixels.shape[0] * _SCALE)
    drawn = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(drawn)
    for token in kept_stage2:
        if token in inside:
            row, column = divmod(token - view.first, view.columns)
            left, top = column * width * _SCALE, row * height * _SCALE
            box = (left, top, left + width * _SCALE - 1, top + height * _SCALE - 1)
            pen.rectangle(box, outline=_FRAME, width=_SCALE)
    return drawn


def _in_a_row(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    joined = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + _GAP
    return joined
