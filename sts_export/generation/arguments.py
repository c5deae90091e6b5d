"""The forms that arguments of a pipeline come in: one or several, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from PIL.Image import Image

from sts_export.errors import RequestError
from sts_export.media.images import ImageSource

MOST_THREADS = 1024  # an engine would start as many as it is told, and take the machine along

Images = ImageSource | Sequence[ImageSource] | None


def stop_strings(stop: Sequence[str] | None) -> tuple[str, ...]:
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    if not isinstance(stop, Sequence):
        raise RequestError(f"stop is a list of strings, not {type(stop).__name__}", field="stop")
    return tuple(stop)


def of_each(name: str, given: Any, prompts: int) -> list[Any]:
    """One setting of each prompt."""
    if not isinstance(given, list):
        return [given] * prompts
    if len(given) != prompts:
        raise RequestError(f"{prompts} prompts need a list of {prompts} entries for {name}, or one for all, not {len(given)}")
    return given


def as_list(images: Images) -> list[ImageSource]:
    if images is None:
        return []
    if isinstance(images, (str, Path, bytes, Image)):
        return [images]
    if isinstance(images, bytearray) or not isinstance(images, Sequence):
        raise RequestError(
            f"images are a path, bytes, a PIL image or a list of these, not {type(images).__name__}",
            field="images",
        )
    return list(cast("Sequence[ImageSource]", images))


def is_batch(prompt: object) -> bool:
    """A list of prompts; a list of messages is one prompt."""
    if isinstance(prompt, (str, bytes, Mapping)) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and all(isinstance(one, str) or not isinstance(one, Mapping) for one in prompt)
