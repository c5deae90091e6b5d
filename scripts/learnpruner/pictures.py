"""Pictures as the frozen vision tower sees them, each computed once as far as there is room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sts_export.media.images import load_image
from sts_export.reference import ReferenceModel
from sts_export.reference.prompt import ImageInput


@dataclass(frozen=True)
class Seen:
    """image: without its pixels; features: [N, C] on the model's device."""

    image: ImageInput
    features: Tensor


class Pictures:
    """file -> :class:`Seen`.

    Args:
        most_bytes: of features that are kept in memory; pictures beyond are computed whenever they are asked for.
    """

    def __init__(self, model: ReferenceModel, most_bytes: int) -> None:
        self._model = model
        self._room = most_bytes
        self._cache: dict[Path, Seen] = {}

    def __call__(self, file: Path) -> Seen:
        """Raises ImageError: the picture cannot be read."""
        if (seen := self._cache.get(file)) is not None:
            return seen
        image = self._model.process(load_image(file))
        on_device = replace(image, pixel_values=image.pixel_values.to(self._model.model.device))
        with torch.no_grad():
            features = self._model.vision(on_device).features
        seen = Seen(replace(image, pixel_values=torch.empty(0)), features)
        size = features.numel() * features.element_size()
        if size <= self._room:
            self._room -= size
            self._cache[file] = seen
        return seen


Look = Callable[[Path], Seen]
