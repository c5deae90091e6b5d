"""Draw which visual tokens survived each stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from sts_export.errors import OutputError
from sts_export.paths import user_path
from sts_export.runtime.images import load_image
from sts_export.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from sts_export.runtime.result import GenerationResult

_SCALE = 2
_DROPPED = 0.25  # brightness left of a token dropped before the LLM
_STAGE1 = 0.65  # and of one dropped inside it
_FRAME = (255, 210, 0)


def save_kept_picture(
    bundle: str | Path, image: str, prompt: str, output: str, max_new_tokens: int | None = None, threads: int | None = None
) -> GenerationResult:
    """Answer the prompt and write what the model saw.

    Survivors of stage 2 are bright and framed, those of stage 1 dimmed, the rest dark.

    Raises:
        OutputError: the picture cannot be written.
    """
    target = user_path(output)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(f"cannot write a picture to {output}: use a name that ends in .png, .jpg or .webp")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {output}: {target.parent} is not a folder; choose another --output")
    if target.resolve() == user_path(image).resolve():
        raise OutputError(f"{output} is the picture itself; choose another --output")
    pipeline = Pipeline(bundle, threads=threads)
    picture = load_image(image)
    result = pipeline.generate(prompt, picture, max_new_tokens=max_new_tokens)
    drawn = draw_kept(
        pipeline.seen(picture), pipeline.manifest.model.vision.patch_size, result.kept_stage1[0], result.kept_stage2
    )
    try:
        drawn.save(target)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise OutputError(f"cannot write {output}: {error.strerror or error}; choose another --output") from None
    return result


def draw_kept(seen: Image.Image, patch: int, kept_stage1: list[int], kept_stage2: list[int]) -> Image.Image:
    """``seen`` is the square picture the vision tower got; indices count patches row by row."""
    columns = seen.width // patch
    brightness = np.full((seen.height // patch) * columns, _DROPPED, np.float32)
    brightness[kept_stage1] = _STAGE1
    brightness[kept_stage2] = 1.0
    per_pixel = np.kron(brightness.reshape(-1, columns), np.ones((patch, patch), np.float32))[..., None]
    pixels = np.asarray(seen, np.float32)[: per_pixel.shape[0], : per_pixel.shape[1]] * per_pixel
    drawn = Image.fromarray(pixels.astype(np.uint8)).resize(
        (seen.width * _SCALE, seen.height * _SCALE), Image.Resampling.NEAREST
    )
    pen, side = ImageDraw.Draw(drawn), patch * _SCALE
    for index in kept_stage2:
        left, top = index % columns * side, index // columns * side
        pen.rectangle((left, top, left + side - 1, top + side - 1), outline=_FRAME, width=_SCALE)
    return drawn
