"""A CLIP vision tower: its dimensions, and the inputs and outputs of its graph.

Apart from the graph itself (clip.py), so that a bundle is opened without onnxscript.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.needs import CLS_ATTENTION


@dataclass(frozen=True)
class ClipVisionConfig:
    """A CLIP vision tower.

    ``feature_layers`` is the number of encoder layers that run before the features are taken (LLaVA's
    ``vision_feature_layer = -2`` of n layers: n - 1).
    """

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    feature_layers: int
    layer_norm_eps: float
    activation: str
    num_channels: int = 3
    kind: Literal["clip"] = "clip"

    @property
    def grid_side(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches, and so visual tokens, of one crop."""
        return self.grid_side**2


def clip_encoder_contract(vision: ClipVisionConfig, dtype: Dtype, needs: Set[str] = frozenset()) -> GraphContract:
    """pixel_values -> visual_features, and what stage 1 needs besides them.

    Inputs:
        pixel_values: [crops, channels, size, size]
    Outputs:
        visual_features: [crops, patches, width]
        cls_attention: [crops, patches] float32, if it is one of ``needs``; attention of CLS to the patches, mean over heads
    """
    pixels = TensorSpec("pixel_values", ("crops", vision.num_channels, vision.image_size, vision.image_size), dtype)
    outputs = [TensorSpec("visual_features", ("crops", vision.num_patches, vision.hidden_size), dtype)]
    if CLS_ATTENTION in needs:
        outputs.append(TensorSpec(CLS_ATTENTION, ("crops", vision.num_patches), "float32"))
    return GraphContract("vision_encoder", (pixels,), tuple(outputs))
