"""What goes into the model before anything is pruned: prompt ids with their images, and an image's visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Messages = Sequence[Mapping[str, Any]]

NEWLINE = -1


@dataclass(frozen=True)
class ImageInput:
    """One picture as the checkpoint's image processor leaves it.

    Attributes:
        pixel_values: LLaVA-1.5 [1, 3, H, W]; LLaVA-NeXT [crops, 3, H, W], the base crop first; Qwen2.5-VL [patches, values].
        size: LLaVA-1.5 (); LLaVA-NeXT (height, width) of the original; Qwen2.5-VL (t, h, w), the grid of patches.
        layout: [rows] what each row of the unpruned prompt is that the image takes: the number of a visual token, or
            ``NEWLINE``.  The numbers are 0, 1, 2, ... in this order.
        crops: [N] int64, the crop that each visual token belongs to, 0 for the base crop.
        places: [N, 2] int64, row and column of each visual token in its crop's grid.
        grid: rows and columns of that grid, the same for every crop.
    """

    pixel_values: Tensor
    size: tuple[int, ...]
    layout: tuple[int, ...]
    crops: Tensor
    places: Tensor
    grid: tuple[int, int]

    @property
    def num_visual_tokens(self) -> int:
        """N, newlines excluded."""
        return len(self.crops)


@dataclass(frozen=True)
class Prompt:
    """Ids of the unpruned prompt, in which image i is a run of ``len(images[i].layout)`` image tokens.

    ``starts`` holds the row where each image begins.
    """

    ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisualFeatures:
    """What the vision tower makes of one image, and what stage 1 looks at.

    features: [N, C] in reading order.
    tower: what else stage 1 may look at, by its name in ``graphs.needs``, where it was asked for: of attention [N] float32,
        within each crop; ``mean_keys`` [N, head_dim] float32.
    cls: [crops, C], the CLS token of each crop, where ``cls_features`` was asked for.
    """

    features: Tensor
    tower: Mapping[str, Tensor] = field(default_factory=dict)
    cls: Tensor | None = None


def raster(rows: int, columns: int) -> Tensor:
    """Row and column of each cell of a grid in reading order: [rows * columns, 2] int64."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def text_messages(prompt: str, images: int) -> list[dict[str, Any]]:
    """One user turn: all images, then the text."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]


def normalized(messages: Messages) -> list[dict[str, Any]]:
    """Plain-text contents as lists of parts: LLaVA's chat templates render nothing for a string."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]
