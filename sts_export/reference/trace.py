"""What the reference shows of its way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sts_export.reference.pruning.crops import Selection
from sts_export.reference.pruning.stage import Choices


@dataclass
class Trace:
    """Tensors between the stages of the prefill, to find where another implementation leaves the path.

    Per image, in a list:
        visual_features: [N, C]; crops: [N] int64, the crop of each; selections: what stage 1 left; visual_embeds: [K, D] of
        its rows; choices: per crop what stage 1 chose in the image's token numbers, or none where nothing was chosen (an
        empty list where the whole image was kept or the choice was given).

    Of the whole prompt:
        tokens: [V] the token of each visual row in the lower layers, numbered through all images, or ``CLS``;
        scores: [V] float32, stage 2's of these rows; stage2_margin: as in Kept; positions, upper_positions: [axes, S] and
        [axes, S'] int64 in the lower and upper layers; hidden: [S', D], the rows that enter layer L.
    """

    visual_features: list[Tensor] = field(default_factory=list)
    crops: list[Tensor] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    visual_embeds: list[Tensor] = field(default_factory=list)
    choices: list[list[Choices | None]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: Tensor | None = None
    stage2_margin: float = math.inf
    positions: Tensor | None = None
    upper_positions: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def margins(self) -> Tensor:
        """[choices] float64: how clear each choice of stage 1 was, over all crops of all images."""
        made = [crop.margins for image in self.choices for crop in image if crop is not None]
        return torch.cat(made) if made else torch.empty(0, dtype=torch.float64)

    @property
    def merged_into(self) -> list[list[int]] | None:
        """Per image, per token the token that it was merged into, -1 for none; None where stage 1 merged nothing."""
        if all(selection.joined is None for selection in self.selections):
            return None
        pairs = zip(self.selections, self.crops, strict=True)
        return [[-1] * len(crops) if selection.joined is None else selection.joined for selection, crops in pairs]
