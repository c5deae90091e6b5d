"""Crops made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sts_export.reference import Crop


def raster_of(count: int, columns: int) -> Tensor:
    """Places of the first ``count`` cells of a grid."""
    return torch.tensor([divmod(cell, columns) for cell in range(count)])


def crop_of(features: Tensor, columns: int | None = None, **rest: Any) -> Crop:
    """Every cell of a grid is a candidate; ``rest``: other fields of the crop, and what the tower gives by name."""
    count = len(features)
    columns = count if columns is None else columns
    fields = {name: rest.pop(name) for name in list(rest) if name in Crop._fields}
    fields = {"picture": features, "places": raster_of(count, columns), "grid": (-(-count // columns), columns), **fields}
    return Crop(features, {name: torch.as_tensor(values) for name, values in rest.items()}, **fields)


def scored(values: list[float], columns: int | None = None, **rest: Any) -> Crop:
    """A crop whose received and CLS attention are these values."""
    attention = torch.tensor(values)
    rest = {"received_attention": attention, "cls_attention": attention, **rest}
    return crop_of(torch.zeros(len(values), 2), columns, **rest)
